-- What clients of E2B call the builds of a template.
CREATE TABLE e2b_tag (
    project_id TEXT NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    tag        TEXT NOT NULL,
    build      TEXT NOT NULL,
    built_at   INTEGER NOT NULL,           -- when the build was begun
    tagged_at  INTEGER NOT NULL,
    PRIMARY KEY (project_id, tag)
) STRICT;
