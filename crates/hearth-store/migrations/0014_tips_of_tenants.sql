-- What a branch was seen at is known to the tenant that fetched it, and to no other: what one may read, another may not.
CREATE TABLE tenant_tip (
    tenant     TEXT NOT NULL,               -- on whose behalf it was looked at
    url        TEXT NOT NULL,
    branch     TEXT NOT NULL,
    commit_id  TEXT NOT NULL,               -- full hexadecimal name
    changed_at INTEGER NOT NULL,            -- when it was first seen at this commit
    PRIMARY KEY (tenant, url, branch)
) STRICT;
INSERT INTO tenant_tip
    SELECT DISTINCT project.tenant, tip.url, tip.branch, tip.commit_id, tip.changed_at
    FROM tip, project, json_each(project.repos) AS repo
    WHERE json_extract(repo.value, '$.url') = tip.url;
DROP TABLE tip;
ALTER TABLE tenant_tip RENAME TO tip;
