-- A database as the versions with migration 0023 left it. It never changes: it is what people have on their disks.
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
INSERT INTO "_sqlx_migrations" VALUES(3,'templates','2026-01-01 00:00:00',1,X'2A2075C6D19763B52D16A2B4C1562185E1A75AA3B7F2A052E6319C18F9B42FA403D62E31C631A3516C74ED1074D12FF2',0);
INSERT INTO "_sqlx_migrations" VALUES(4,'freshness','2026-01-01 00:00:00',1,X'127B42F09EE6D82C1A85B7B78C8043E3C5322469BD98B95DBA20573F7C1BB2FE5CE36ABCDA7CFB7695F9012FC6027D5D',0);
INSERT INTO "_sqlx_migrations" VALUES(5,'explain','2026-01-01 00:00:00',1,X'A216234BF7081A55EDED74992F5B5E1020CE0BC77C394DD0C1B86D9F084DE64965874738EB053BB1E2C38C1A100CD3D7',0);
INSERT INTO "_sqlx_migrations" VALUES(6,'hand over','2026-01-01 00:00:00',1,X'72FED5B8BCAAB2322D95273C30AD83AA24E97B22B2B7AAD2318B8147D38FE03DE583FF57CCA2177C055807EC8D2B41D5',0);
INSERT INTO "_sqlx_migrations" VALUES(7,'set ups','2026-01-01 00:00:00',1,X'5B7E683057FAB8CA4B462A3F07C5C044A99F0287F7F833843B6AEC46A8C6B59ACD8249747D33CA08618744998FC322AE',0);
INSERT INTO "_sqlx_migrations" VALUES(8,'git identity','2026-01-01 00:00:00',1,X'9B056A845D818B877BE0D9C0459716EC4EF416A1A96278FAF7BE9CACD7257C79A7DF99025D7A60E5810A83C35BE2FFD5',0);
INSERT INTO "_sqlx_migrations" VALUES(10,'builds','2026-01-01 00:00:00',1,X'408F73A0668112A88CDAB2CCA57537A1BC5F412D4E0E6DD96F800B2EE02CF69E00783E7D8796CF0801E96166D83A7404',0);
INSERT INTO "_sqlx_migrations" VALUES(11,'names','2026-01-01 00:00:00',1,X'BB9A3718A7FACDBAC4411DD8B9641A86F9E1CAF3058C1D4555428614E46B1C26A76C0CA06BF44597140B3326BB47E56C',0);
INSERT INTO "_sqlx_migrations" VALUES(13,'guests','2026-01-01 00:00:00',1,X'3C90B58901BE5AAAE1B745837F1309839372A34737DDBD3731FE9217F597BB73BC63C68AF00B654DB9BE4F734F69E20C',0);
INSERT INTO "_sqlx_migrations" VALUES(14,'tips of tenants','2026-01-01 00:00:00',1,X'FE2A16FAA211BEB7477C7E51115C44B62EE24123745F2B71FD3EACD60D6BCAFED4E5FE637387BD76FD22590735805053',0);
INSERT INTO "_sqlx_migrations" VALUES(17,'purpose','2026-01-01 00:00:00',1,X'521E90F359D349FB513E23DEAF93CA327F7FD9EF109366D8EE103D83B60F164C2A0F88741E853AFDF4C7C875222AE99F',0);
INSERT INTO "_sqlx_migrations" VALUES(20,'credentials','2026-01-01 00:00:00',1,X'98120380333D882C700FA87DB8EEFC5478D9AA466BDF811996167D587E673E323C06FA87E59006E295E67C349A2BEEB1',0);
INSERT INTO "_sqlx_migrations" VALUES(21,'fork','2026-01-01 00:00:00',1,X'31BB48272FE0A3E42607178FADD9713FC947B29DD6C145F7F0D602AF51E0A2A038768631E82E6386EDB4FAEEDF85B259',0);
INSERT INTO "_sqlx_migrations" VALUES(22,'egress','2026-01-01 00:00:00',1,X'4106C1764181A08DB876E5B79D3A39B29506462D61C72824C0AAFC30C24744B7E477871B271F4A82E5EA598949A71E0B',0);
INSERT INTO "_sqlx_migrations" VALUES(23,'leases','2026-01-01 00:00:00',1,X'90DE312BE5A91CE267E86E0B65D67F96556C9BC40E488EFEB0CEA1E5DD8216B8A738447591CC067F9021D176ECA4BF38',0);
CREATE TABLE checkpoint (
    key        TEXT PRIMARY KEY,
    parent     TEXT,                        -- the checkpoint it goes on from
    project_id TEXT,                        -- NULL for a base, which holds nothing of a project
    logs     TEXT NOT NULL,               -- JSON: what ran between parent and this one left in the record
    created_at INTEGER NOT NULL
, checkouts TEXT) STRICT;
CREATE TABLE checkpoint_fault (
    key        TEXT NOT NULL,
    project_id TEXT,
    reason     TEXT NOT NULL,
    at         INTEGER NOT NULL
) STRICT;
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
, hand_over TEXT, handed_over INTEGER NOT NULL DEFAULT 1, asked TEXT, owner TEXT, paused_because TEXT) STRICT;
INSERT INTO "claim" VALUES('wpi_1','prj_a1111111','T1','cc','tok_1','{}',3600000,1700000000013,1700000003613,NULL,NULL,1,NULL,NULL,NULL);
CREATE TABLE controller (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    holder     TEXT NOT NULL,               -- the server process
    generation INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
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
INSERT INTO "credential" VALUES('prj_a1111111','git.example.org','token','x',0,NULL,X'99AABB',1700000000014,NULL);
CREATE TABLE egress (
    project_id TEXT PRIMARY KEY REFERENCES project (id) ON DELETE CASCADE,
    policy     TEXT NOT NULL,                -- JSON
    updated_at INTEGER NOT NULL
) STRICT;
INSERT INTO "egress" VALUES('prj_a1111111','{"mode":"allow","hosts":["git.example.org"]}',1700000000015);
CREATE TABLE instance (
    id             TEXT PRIMARY KEY,
    project_id     TEXT NOT NULL,
    vm_id          TEXT NOT NULL UNIQUE,
    state          TEXT NOT NULL,
    generation     INTEGER NOT NULL,        -- counts up with every move
    recipe         TEXT NOT NULL,
    memory_mib     INTEGER NOT NULL,
    started_by     TEXT,                    -- the server process that began to make it
    failure_kind   TEXT,
    failure_reason TEXT,
    repos          TEXT NOT NULL DEFAULT '[]', -- JSON list of checkouts
    created_at     INTEGER NOT NULL,
    state_since    INTEGER NOT NULL,
    provisioned_at INTEGER
, settings TEXT NOT NULL DEFAULT '[]', private_mib INTEGER, template_key TEXT, worked_in INTEGER NOT NULL DEFAULT 0, vm_ended_at INTEGER, vm_ended_why TEXT, restarts INTEGER NOT NULL DEFAULT 0, interrupted_at INTEGER, boot_id TEXT, rebooted_at INTEGER, purpose TEXT NOT NULL DEFAULT 'pool'
    CHECK (purpose IN ('pool', 'test', 'test-uncached', 'claim', 'renewal')), serves_claims INTEGER GENERATED ALWAYS AS (purpose IN ('pool', 'claim')) VIRTUAL, fork_of TEXT) STRICT;
INSERT INTO "instance" VALUES('wpi_1','prj_a1111111','vm-1','claimed',4,'aa-bb',1024,NULL,NULL,NULL,'[]',1700000000008,1700000000009,1700000000010,'[]',NULL,NULL,0,NULL,NULL,0,NULL,NULL,NULL,'pool',NULL);
INSERT INTO "instance" VALUES('wpi_2','prj_a1111111','vm-2','failed',3,'aa-bb',1024,NULL,NULL,NULL,'[]',1700000000011,1700000000012,NULL,'[]',NULL,NULL,0,NULL,NULL,0,NULL,NULL,NULL,'test',NULL);
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
CREATE TABLE named_checkpoint (
    project_id  TEXT NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    key         TEXT NOT NULL UNIQUE,        -- the checkpoint
    instance_id TEXT NOT NULL,               -- what it was made of
    owner       TEXT NOT NULL,               -- whose claim that was: the VM's memory may hold secrets of this user
    note        TEXT,
    claim_reply TEXT NOT NULL,               -- JSON: what was answered to that claim
    settings    TEXT NOT NULL,               -- JSON: what its repositories' settings files say
    memory_mib  INTEGER NOT NULL,            -- memory of its VM
    bytes       INTEGER,                     -- what it takes on the disk; NULL while it is being made
    created_at  INTEGER NOT NULL,
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
, retried_at INTEGER) STRICT;
INSERT INTO "pool" VALUES('prj_a1111111',1,2,1440,'main','[{"name":"deps","command":"make deps"}]',1700000000006,1700000000007,NULL,NULL,NULL);
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
, max_vms INTEGER, setup TEXT, template_epoch INTEGER NOT NULL DEFAULT 0, set_up TEXT, set_up_since INTEGER, git_identity TEXT, credentials_version INTEGER NOT NULL DEFAULT 0, max_claims INTEGER, idle_pause_minutes INTEGER, idle_pause_to_disk INTEGER NOT NULL DEFAULT 0, lease_warning_minutes INTEGER NOT NULL DEFAULT 10) STRICT;
INSERT INTO "project" VALUES('prj_a1111111','default','Shop','the shop','SHOP','[{"repoFullName":"acme/shop","branch":"main","url":"https://git.example.org/shop"}]',NULL,'small',NULL,3,1700000000000,1700000000001,5,NULL,1,NULL,NULL,NULL,0,4,30,0,10);
INSERT INTO "project" VALUES('prj_b2222222','beta','Blog',NULL,'BLOG','[]',NULL,'medium',NULL,0,1700000000002,1700000000003,NULL,NULL,0,NULL,NULL,NULL,0,NULL,NULL,0,10);
CREATE TABLE set_up (
    project_id TEXT NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,               -- the first half of a recipe's name
    parts      TEXT NOT NULL,               -- JSON object: a digest of each part
    commands   TEXT NOT NULL,               -- JSON list of {repoFullName, name, command}
    PRIMARY KEY (project_id, name)
) STRICT;
CREATE TABLE step (
    instance_id TEXT NOT NULL REFERENCES instance (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    entry       TEXT NOT NULL,              -- JSON
    PRIMARY KEY (instance_id, seq)
) STRICT;
CREATE TABLE stopped_vm (
    vm_id TEXT PRIMARY KEY
) STRICT;
CREATE TABLE template (
    project_id TEXT NOT NULL,
    recipe     TEXT NOT NULL,
    key        TEXT NOT NULL REFERENCES checkpoint (key) ON DELETE CASCADE,
    created_at INTEGER NOT NULL, repos TEXT NOT NULL DEFAULT '[]', settings TEXT NOT NULL DEFAULT '[]',
    PRIMARY KEY (project_id, recipe)
) STRICT;
CREATE TABLE "tip" (
    tenant     TEXT NOT NULL,               -- on whose behalf it was looked at
    project_id TEXT NOT NULL,               -- the project with whose credentials; '' with none of a project
    url        TEXT NOT NULL,
    branch     TEXT NOT NULL,
    commit_id  TEXT NOT NULL,               -- full hexadecimal name
    changed_at INTEGER NOT NULL,            -- when it was first seen at this commit
    PRIMARY KEY (tenant, project_id, url, branch)
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
CREATE INDEX checkpoint_by_parent ON checkpoint (parent);
CREATE INDEX template_by_key ON template (key);
CREATE INDEX checkpoint_fault_by_time ON checkpoint_fault (at);
CREATE UNIQUE INDEX project_by_name ON project (tenant, lower(trim(name)));
COMMIT;
