-- Times are milliseconds since the Unix epoch. JSON columns hold the wire types of hearth-api.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE token (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL,
    name         TEXT NOT NULL,
    owner        TEXT NOT NULL,
    hash         TEXT NOT NULL UNIQUE,      -- SHA-256 of the whole token, hexadecimal
    scopes       TEXT NOT NULL,             -- JSON list
    project_id   TEXT,
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER,
    expires_at   INTEGER
) STRICT;

CREATE TABLE project (
    id                TEXT PRIMARY KEY,
    tenant            TEXT NOT NULL,
    name              TEXT NOT NULL,
    description       TEXT,
    task_code         TEXT NOT NULL,
    repos             TEXT NOT NULL,        -- JSON list of {repoFullName, branch, url}
    image             TEXT,
    vm_size           TEXT NOT NULL,
    project_setup     TEXT,                 -- JSON list of commands
    variables_version INTEGER NOT NULL DEFAULT 0,
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL
) STRICT;
CREATE INDEX project_by_tenant ON project (tenant, id);

CREATE TABLE variable (
    project_id TEXT NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    value      BLOB NOT NULL,               -- nonce and ciphertext, see secrets.rs
    updated_at INTEGER NOT NULL,
    updated_by TEXT,
    PRIMARY KEY (project_id, name)
) STRICT;

CREATE TABLE pool (
    project_id          TEXT PRIMARY KEY REFERENCES project (id) ON DELETE CASCADE,
    enabled             INTEGER NOT NULL,
    target_size         INTEGER NOT NULL,
    max_age_minutes     INTEGER NOT NULL,
    branch              TEXT,
    setup_commands      TEXT,               -- JSON list
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    last_provisioned_at INTEGER,
    last_claimed_at     INTEGER
) STRICT;

-- One VM from wish to destruction. No foreign key to project: a deleted project's VMs outlive it until they are destroyed.
CREATE TABLE instance (
    id             TEXT PRIMARY KEY,
    project_id     TEXT NOT NULL,
    vm_id          TEXT NOT NULL UNIQUE,
    state          TEXT NOT NULL,
    generation     INTEGER NOT NULL,        -- counts up with every move
    is_test        INTEGER NOT NULL,
    reserved       INTEGER NOT NULL,        -- a waiting claim has it
    recipe         TEXT NOT NULL,
    memory_mib     INTEGER NOT NULL,
    started_by     TEXT,                    -- the server process that began to make it
    failure_kind   TEXT,
    failure_reason TEXT,
    repos          TEXT NOT NULL DEFAULT '[]', -- JSON list of checkouts
    created_at     INTEGER NOT NULL,
    state_since    INTEGER NOT NULL,
    provisioned_at INTEGER
) STRICT;
CREATE INDEX instance_by_project ON instance (project_id, id);
CREATE INDEX instance_ready ON instance (project_id, state_since) WHERE state = 'ready';

CREATE TABLE step (
    instance_id TEXT NOT NULL REFERENCES instance (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    entry       TEXT NOT NULL,              -- JSON
    PRIMARY KEY (instance_id, seq)
) STRICT;

-- The hand-over of one instance to one task. The row outlives the instance so that a repeated key is recognised.
CREATE TABLE claim (
    instance_id TEXT PRIMARY KEY,
    project_id  TEXT NOT NULL,
    key         TEXT,                       -- idempotency key
    body_hash   TEXT NOT NULL,
    token_id    TEXT NOT NULL,
    reply       TEXT NOT NULL,              -- JSON
    lease_ms    INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    ended_at    INTEGER
) STRICT;
CREATE UNIQUE INDEX claim_by_key ON claim (project_id, key) WHERE key IS NOT NULL;
