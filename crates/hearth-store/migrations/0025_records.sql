-- Who did what: one row for each request that changes something, when it was answered. Never a body, never a secret.
CREATE TABLE audit (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,            -- when the request came
    tenant      TEXT NOT NULL,               -- of the token
    token_id    TEXT NOT NULL,
    token_name  TEXT NOT NULL,               -- as it was then: tokens go
    owner       TEXT NOT NULL,
    address     TEXT,                        -- where the request came from
    operation   TEXT NOT NULL,               -- the operation's id in the OpenAPI document
    project_id  TEXT,
    instance_id TEXT,
    subject     TEXT,                        -- what else the path names: a variable, a checkpoint, a token, a session
    status      INTEGER NOT NULL,            -- of the answer
    request_id  TEXT
) STRICT;
CREATE INDEX audit_by_tenant ON audit (tenant, id);
CREATE INDEX audit_by_project ON audit (project_id, id);

-- What was claimed and made: written from the events, kept when the rows that it is about are gone.
CREATE TABLE claim_history (
    instance_id   TEXT PRIMARY KEY,
    project_id    TEXT NOT NULL,
    claimed_at    INTEGER NOT NULL,
    ended_at      INTEGER,
    ended_because TEXT,
    owner         TEXT,
    task          TEXT,                      -- idempotency key
    source        TEXT NOT NULL,
    cause         TEXT,                      -- why it was not warm; NULL when it was
    wait_ms       INTEGER NOT NULL,
    total_ms      REAL,                      -- from the request to the reply; NULL for forks of VMs in use
    recipe        TEXT NOT NULL
) STRICT;
CREATE INDEX claim_history_by_project ON claim_history (project_id, claimed_at);
CREATE INDEX claim_history_by_time ON claim_history (claimed_at);

CREATE TABLE boot_history (
    instance_id  TEXT PRIMARY KEY,
    project_id   TEXT NOT NULL,
    purpose      TEXT NOT NULL,
    recipe       TEXT NOT NULL,
    ordered_at   INTEGER NOT NULL,
    reason       TEXT,                       -- why it was made
    ended_at     INTEGER,                    -- when it became ready or failed
    outcome      TEXT,                       -- ready, failed
    failure      TEXT,
    gone_at      INTEGER,                    -- when its VM began to go
    gone_because TEXT,
    log          BLOB                        -- its steps as JSON, deflated
) STRICT;
CREATE INDEX boot_history_by_project ON boot_history (project_id, ordered_at);
CREATE INDEX boot_history_by_time ON boot_history (ordered_at);
