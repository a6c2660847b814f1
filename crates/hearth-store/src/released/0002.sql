-- A database as the versions with migration 0002 left it. It never changes: it is what people have on their disks.
BEGIN TRANSACTION;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO "_sqlx_migrations" VALUES(1,'first','2026-01-01 00:00:00',1,X'1D0784235A6B27DBF2EB58E2ED2C5EBC9500B5214F10F3FDAF1EF16D97CAB43897418DD5FA19D31DE5F7D51F0AF3F09C',0);
INSERT INTO "_sqlx_migrations" VALUES(2,'contract','2026-01-01 00:00:00',1,X'523D20A188685248B8584C0CF2772DD20EB5B634757CBC55849E4A5460CDA48A2048A8E4FEBBFA8F7B3E5121C66D0FA8',0);
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
INSERT INTO "claim" VALUES('wpi_1','prj_a1111111','T1','cc','tok_1','{}',3600000,1700000000013,1700000003613,NULL);
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
, settings TEXT NOT NULL DEFAULT '[]') STRICT;
INSERT INTO "instance" VALUES('wpi_1','prj_a1111111','vm-1','claimed',4,0,0,'aa-bb',1024,NULL,NULL,NULL,'[]',1700000000008,1700000000009,1700000000010,'[]');
INSERT INTO "instance" VALUES('wpi_2','prj_a1111111','vm-2','failed',3,1,0,'aa-bb',1024,NULL,NULL,NULL,'[]',1700000000011,1700000000012,NULL,'[]');
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
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
INSERT INTO "pool" VALUES('prj_a1111111',1,2,1440,'main','[{"name":"deps","command":"make deps"}]',1700000000006,1700000000007,NULL,NULL);
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
, max_vms INTEGER, setup TEXT) STRICT;
INSERT INTO "project" VALUES('prj_a1111111','default','Shop','the shop','SHOP','[{"repoFullName":"acme/shop","branch":"main","url":"https://git.example.org/shop"}]',NULL,'small',NULL,3,1700000000000,1700000000001,5,NULL);
INSERT INTO "project" VALUES('prj_b2222222','beta','Blog',NULL,'BLOG','[]',NULL,'medium',NULL,0,1700000000002,1700000000003,NULL,NULL);
CREATE TABLE step (
    instance_id TEXT NOT NULL REFERENCES instance (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    entry       TEXT NOT NULL,              -- JSON
    PRIMARY KEY (instance_id, seq)
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
INSERT INTO "token" VALUES('tok_1','default','first admin token','default','abababababababababababababababababababababababababababababababab','["admin"]',NULL,1700000000000,NULL,NULL);
CREATE TABLE "variable" (
    project_id TEXT NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    owner      TEXT NOT NULL,
    name       TEXT NOT NULL,
    value      BLOB NOT NULL,               -- nonce and ciphertext, see secrets.rs
    updated_at INTEGER NOT NULL,
    updated_by TEXT,
    PRIMARY KEY (project_id, owner, name)
) STRICT;
INSERT INTO "variable" VALUES('prj_a1111111','','KEY',X'0011223344',1700000000004,'tok_1');
INSERT INTO "variable" VALUES('prj_a1111111','ada','MINE',X'55667788',1700000000005,NULL);
CREATE INDEX project_by_tenant ON project (tenant, id);
CREATE INDEX instance_by_project ON instance (project_id, id);
CREATE INDEX instance_ready ON instance (project_id, state_since) WHERE state = 'ready';
CREATE UNIQUE INDEX claim_by_key ON claim (project_id, key) WHERE key IS NOT NULL;
COMMIT;
