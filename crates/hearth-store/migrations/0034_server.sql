-- Which server runs what: several may share one store, each with VMs and checkpoints of its own. In SQLite there is one server, ''.
ALTER TABLE instance ADD COLUMN server TEXT NOT NULL DEFAULT '';
ALTER TABLE named_checkpoint ADD COLUMN server TEXT NOT NULL DEFAULT '';
ALTER TABLE stopped_vm ADD COLUMN server TEXT NOT NULL DEFAULT '';

-- Two servers have checkpoints of one key: what they hold is the same, and each has its own files.
CREATE TABLE checkpoint_of_server (
    server     TEXT NOT NULL DEFAULT '',
    key        TEXT NOT NULL,
    parent     TEXT,
    project_id TEXT,
    logs       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    checkouts  TEXT,
    PRIMARY KEY (server, key)
) STRICT;
INSERT INTO checkpoint_of_server (key, parent, project_id, logs, created_at, checkouts)
    SELECT key, parent, project_id, logs, created_at, checkouts FROM checkpoint;
CREATE TABLE template_of_server (
    server     TEXT NOT NULL DEFAULT '',
    project_id TEXT NOT NULL,
    recipe     TEXT NOT NULL,
    key        TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    repos      TEXT NOT NULL DEFAULT '[]',
    settings   TEXT NOT NULL DEFAULT '[]',
    PRIMARY KEY (server, project_id, recipe),
    FOREIGN KEY (server, key) REFERENCES checkpoint_of_server (server, key) ON DELETE CASCADE
) STRICT;
INSERT INTO template_of_server (project_id, recipe, key, created_at, repos, settings)
    SELECT project_id, recipe, key, created_at, repos, settings FROM template;
DROP TABLE template;
DROP TABLE checkpoint;
ALTER TABLE checkpoint_of_server RENAME TO checkpoint;
ALTER TABLE template_of_server RENAME TO template;
CREATE INDEX checkpoint_by_parent ON checkpoint (parent);
CREATE INDEX template_by_key ON template (server, key);

-- The servers of a store in PostgreSQL, and which of them a project's pool is at home on. Empty in SQLite.
CREATE TABLE server (
    id         TEXT PRIMARY KEY,            -- of its data folder
    place      TEXT NOT NULL,               -- host and folder, for people; one place is one server
    url        TEXT,                        -- where the others reach it
    version    TEXT NOT NULL,
    session    TEXT NOT NULL,               -- the process
    generation INTEGER NOT NULL,            -- counts up with every start
    memory_mib INTEGER NOT NULL,            -- what its VMs may have together
    started_at INTEGER NOT NULL,
    alive_until INTEGER NOT NULL            -- by the database's clock
) STRICT;
CREATE TABLE home (
    project_id TEXT PRIMARY KEY REFERENCES project (id) ON DELETE CASCADE,
    server     TEXT NOT NULL,
    generation INTEGER NOT NULL,            -- counts up with every new home
    since      INTEGER NOT NULL
) STRICT;
