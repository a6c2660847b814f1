-- Git credentials of a project: the secret sealed, the rest to be shown.
CREATE TABLE credential (
    project_id  TEXT NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    host        TEXT NOT NULL,               -- a name or address, and a port where it is not the usual one
    kind        TEXT NOT NULL CHECK (kind IN ('token', 'key')),
    username    TEXT,
    allow_http  INTEGER NOT NULL,
    fingerprint TEXT,
    secret      BLOB NOT NULL,               -- nonce and ciphertext
    updated_at  INTEGER NOT NULL,
    updated_by  TEXT,
    PRIMARY KEY (project_id, host, kind)
) STRICT;
-- Counts up with every change. From 1 on the project fetches for itself: what its credentials read is no other project's.
ALTER TABLE project ADD COLUMN credentials_version INTEGER NOT NULL DEFAULT 0;

CREATE TABLE project_tip (
    tenant     TEXT NOT NULL,               -- on whose behalf it was looked at
    project_id TEXT NOT NULL,               -- the project with whose credentials; '' with none of a project
    url        TEXT NOT NULL,
    branch     TEXT NOT NULL,
    commit_id  TEXT NOT NULL,               -- full hexadecimal name
    changed_at INTEGER NOT NULL,            -- when it was first seen at this commit
    PRIMARY KEY (tenant, project_id, url, branch)
) STRICT;
INSERT INTO project_tip SELECT tenant, '', url, branch, commit_id, changed_at FROM tip;
DROP TABLE tip;
ALTER TABLE project_tip RENAME TO tip;
