-- What is known of the driver's checkpoints beyond their files. One without a row here is of no use and is removed.
CREATE TABLE checkpoint (
    key        TEXT PRIMARY KEY,
    parent     TEXT,                        -- the checkpoint it goes on from
    project_id TEXT,                        -- NULL for a base, which holds nothing of a project
    pieces     TEXT NOT NULL,               -- JSON: what ran between parent and this one left in the record
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX checkpoint_by_parent ON checkpoint (parent);

-- The checkpoint that the instances of a recipe are forked from.
CREATE TABLE template (
    project_id TEXT NOT NULL,
    recipe     TEXT NOT NULL,
    key        TEXT NOT NULL REFERENCES checkpoint (key) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (project_id, recipe)
) STRICT;
CREATE INDEX template_by_key ON template (key);

ALTER TABLE instance ADD COLUMN use_cache INTEGER NOT NULL DEFAULT 1;  -- 0: a test boot that runs every step
ALTER TABLE instance ADD COLUMN private_mib INTEGER;                   -- measured when it was put to rest
