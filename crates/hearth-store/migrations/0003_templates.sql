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
ALTER TABLE instance ADD COLUMN template_key TEXT;                     -- the checkpoint it was forked from
ALTER TABLE instance ADD COLUMN is_build INTEGER NOT NULL DEFAULT 0;   -- renews the template; nobody gets it

-- Counts up when a template is renewed without its inputs having changed.
ALTER TABLE project ADD COLUMN template_epoch INTEGER NOT NULL DEFAULT 0;

-- Checkpoints that were found damaged, for whoever asks why something was made anew.
CREATE TABLE checkpoint_fault (
    key        TEXT NOT NULL,
    project_id TEXT,
    reason     TEXT NOT NULL,
    at         INTEGER NOT NULL
) STRICT;
CREATE INDEX checkpoint_fault_by_time ON checkpoint_fault (at);
