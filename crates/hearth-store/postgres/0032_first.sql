-- The schema of PostgreSQL, as SQLite has it after its migration of this number: the same tables with the same columns. Every later
-- migration is a pair, one file here and one in `migrations/`, with one number and name.
--
-- Times are milliseconds since the Unix epoch. JSON columns hold the wire types of hearth-api, as text: nobody searches in them, and
-- what is written is what is read. Texts compare by their bytes, as SQLite's do, whatever the database's own collation is.

CREATE DOMAIN words AS TEXT COLLATE "C";

CREATE TABLE meta (
    key   words PRIMARY KEY,
    value words NOT NULL
);

CREATE TABLE token (
    id           words PRIMARY KEY,
    tenant       words NOT NULL,
    name         words NOT NULL,
    owner        words NOT NULL,
    hash         words NOT NULL UNIQUE,       -- SHA-256 of the whole token, hexadecimal
    scopes       words NOT NULL,              -- JSON list
    project_id   words,
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT,
    expires_at   BIGINT,
    name_prefix  words,                       -- it reaches the projects whose names begin so
    max_vms      BIGINT                       -- so many VMs its claims may hold at once
);

CREATE TABLE project (
    id                    words PRIMARY KEY,
    tenant                words NOT NULL,
    name                  words NOT NULL,
    description           words,
    task_code             words NOT NULL,
    repos                 words NOT NULL,     -- JSON list of {repoFullName, branch, url}
    image                 words,
    vm_size               words NOT NULL,
    project_setup         words,              -- JSON list of commands
    variables_version     BIGINT NOT NULL DEFAULT 0,
    created_at            BIGINT NOT NULL,
    updated_at            BIGINT NOT NULL,
    max_vms               BIGINT,
    setup                 words,              -- JSON, as it was saved
    template_epoch        BIGINT NOT NULL DEFAULT 0, -- counts up when a template is renewed without its inputs having changed
    set_up                words,              -- the set-up that the project's pool is to follow
    set_up_since          BIGINT,
    git_identity          words,              -- JSON; NULL: the owner of the claiming token
    credentials_version   BIGINT NOT NULL DEFAULT 0, -- from 1 on the project fetches for itself
    max_claims            BIGINT,             -- NULL: no limit of its own
    idle_pause_minutes    BIGINT,             -- NULL: never
    idle_pause_to_disk    BOOLEAN NOT NULL DEFAULT FALSE,
    lease_warning_minutes BIGINT NOT NULL DEFAULT 10
);
CREATE INDEX project_by_tenant ON project (tenant, id);
-- A name means one project of a tenant.
CREATE UNIQUE INDEX project_by_name ON project (tenant, lower(trim(name)));

CREATE TABLE variable (
    project_id words NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    owner      words NOT NULL,                -- '' for the shared ones, else the user whose personal ones they are
    name       words NOT NULL,
    value      BYTEA NOT NULL,                -- nonce and ciphertext
    updated_at BIGINT NOT NULL,
    updated_by words,
    PRIMARY KEY (project_id, owner, name)
);

CREATE TABLE pool (
    project_id          words PRIMARY KEY REFERENCES project (id) ON DELETE CASCADE,
    enabled             BOOLEAN NOT NULL,
    target_size         BIGINT NOT NULL,
    max_age_minutes     BIGINT NOT NULL,
    branch              words,
    setup_commands      words,                -- JSON list
    created_at          BIGINT NOT NULL,
    updated_at          BIGINT NOT NULL,
    last_provisioned_at BIGINT,
    last_claimed_at     BIGINT,
    retried_at          BIGINT,               -- failures before this do not count against the recipe
    schedule            words                 -- JSON; NULL: never another size
);

-- One VM from order to destruction. No foreign key to project: a deleted project's VMs outlive it until they are destroyed.
CREATE TABLE instance (
    id             words PRIMARY KEY,
    project_id     words NOT NULL,
    vm_id          words NOT NULL UNIQUE,
    state          words NOT NULL,
    generation     BIGINT NOT NULL,           -- counts up with every move
    recipe         words NOT NULL,
    memory_mib     BIGINT NOT NULL,
    started_by     words,                     -- the server process that began to make it
    failure_kind   words,
    failure_reason words,
    repos          words NOT NULL DEFAULT '[]', -- JSON list of checkouts
    created_at     BIGINT NOT NULL,
    state_since    BIGINT NOT NULL,
    provisioned_at BIGINT,
    settings       words NOT NULL DEFAULT '[]', -- JSON list of {repoFullName, file, settings}
    private_mib    BIGINT,                    -- measured when it was paused
    template_key   words,                     -- the checkpoint it was forked from
    worked_in      BOOLEAN NOT NULL DEFAULT FALSE, -- somebody worked in the VM before it was claimed
    vm_ended_at    BIGINT,                    -- when a VM whose record stays was removed
    vm_ended_why   words,
    restarts       BIGINT NOT NULL DEFAULT 0, -- how often a server ended in the middle of its boot
    interrupted_at BIGINT,                    -- when the next server found it so
    boot_id        words,
    rebooted_at    BIGINT,                    -- when it was last noticed that its guest had restarted
    purpose        words NOT NULL DEFAULT 'pool'
        CHECK (purpose IN ('pool', 'test', 'test-uncached', 'claim', 'renewal')),
    -- A claim may get it: the pool's, or a waiting claim's own.
    serves_claims  BOOLEAN NOT NULL GENERATED ALWAYS AS (purpose IN ('pool', 'claim')) STORED,
    fork_of        words                      -- the checkpoint of a VM in use that it was forked from
);
CREATE INDEX instance_by_project ON instance (project_id, id);
CREATE INDEX instance_ready ON instance (project_id, state_since) WHERE state = 'ready';

CREATE TABLE step (
    instance_id words NOT NULL REFERENCES instance (id) ON DELETE CASCADE,
    seq         BIGINT NOT NULL,
    entry       words NOT NULL,               -- JSON
    PRIMARY KEY (instance_id, seq)
);

-- The hand-over of one instance to one task. The row outlives the instance so that a repeated key is recognised.
CREATE TABLE claim (
    instance_id     words PRIMARY KEY,
    project_id      words NOT NULL,
    key             words,                    -- idempotency key
    body_hash       words NOT NULL,
    token_id        words NOT NULL,
    reply           words NOT NULL,           -- JSON
    lease_ms        BIGINT NOT NULL,
    created_at      BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    ended_at        BIGINT,
    hand_over       words,                    -- JSON: what the hand-over saw and where its time went
    handed_over     BOOLEAN NOT NULL DEFAULT TRUE, -- the VM became the task's own: only then the claim was answered
    asked           words,                    -- JSON object: field, keyed hash
    owner           words,                    -- whose token claimed
    paused_because  words,                    -- why its VM was last paused, when Hearth did it
    release_session words                     -- the session whose end releases the VM
);
CREATE UNIQUE INDEX claim_by_key ON claim (project_id, key) WHERE key IS NOT NULL;
CREATE INDEX claim_by_release_session ON claim (release_session) WHERE release_session IS NOT NULL;

-- What is known of the driver's checkpoints beyond their files. One without a row here is of no use and is removed.
CREATE TABLE checkpoint (
    key        words PRIMARY KEY,
    parent     words,                         -- the checkpoint it continues from
    project_id words,                         -- NULL for a base, which holds nothing of a project
    logs       words NOT NULL,                -- JSON: what the stages since the parent left in the stage log
    created_at BIGINT NOT NULL,
    checkouts  words                          -- JSON list of {commit, branch, gone}, in the repositories' order
);
CREATE INDEX checkpoint_by_parent ON checkpoint (parent);

-- The checkpoint that the instances of a recipe are forked from.
CREATE TABLE template (
    project_id words NOT NULL,
    recipe     words NOT NULL,
    key        words NOT NULL REFERENCES checkpoint (key) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    repos      words NOT NULL DEFAULT '[]',   -- JSON list of checkouts
    settings   words NOT NULL DEFAULT '[]',   -- JSON list: what their settings files say
    PRIMARY KEY (project_id, recipe)
);
CREATE INDEX template_by_key ON template (key);

-- Checkpoints that were found damaged, for who asks why something was made anew.
CREATE TABLE checkpoint_fault (
    key        words NOT NULL,
    project_id words,
    reason     words NOT NULL,
    at         BIGINT NOT NULL
);
CREATE INDEX checkpoint_fault_by_time ON checkpoint_fault (at);

-- Which server acts on the pools. Who holds it acts alone; a new holder counts up.
CREATE TABLE controller (
    id         BIGINT PRIMARY KEY CHECK (id = 1),
    holder     words NOT NULL,                -- the server process
    generation BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

-- The set-ups that a project's VMs were made by: what tells them apart, and the named commands that belonged to them.
CREATE TABLE set_up (
    project_id words NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name       words NOT NULL,                -- the first half of a recipe's name
    parts      words NOT NULL,                -- JSON object: a digest of each part
    commands   words NOT NULL,                -- JSON list of {repoFullName, name, command}
    PRIMARY KEY (project_id, name)
);

-- Git credentials of a project: the secret sealed, the rest to be shown.
CREATE TABLE credential (
    project_id  words NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    host        words NOT NULL,
    kind        words NOT NULL CHECK (kind IN ('token', 'key')),
    username    words,
    allow_http  BOOLEAN NOT NULL,
    fingerprint words,
    secret      BYTEA NOT NULL,               -- nonce and ciphertext
    updated_at  BIGINT NOT NULL,
    updated_by  words,
    PRIMARY KEY (project_id, host, kind)
);

-- What each followed branch was last seen at, by the tenant (or the project with credentials) that fetched it.
CREATE TABLE tip (
    tenant     words NOT NULL,
    project_id words NOT NULL,                -- '' with the credentials of no project
    url        words NOT NULL,
    branch     words NOT NULL,
    commit_id  words NOT NULL,                -- full hexadecimal name
    changed_at BIGINT NOT NULL,               -- when it was first seen at this commit
    PRIMARY KEY (tenant, project_id, url, branch)
);

-- VMs that ran and are stopped for a moment, while a checkpoint of them is made: a server that finds one here resumes it.
CREATE TABLE stopped_vm (
    vm_id words PRIMARY KEY
);

-- Checkpoints that owners of claims made, by name. They are no templates.
CREATE TABLE named_checkpoint (
    project_id  words NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name        words NOT NULL,
    key         words NOT NULL UNIQUE,        -- the checkpoint
    instance_id words NOT NULL,               -- what it was made of
    owner       words NOT NULL,               -- whose claim that was
    note        words,
    claim_reply words NOT NULL,               -- JSON: what was answered to that claim
    settings    words NOT NULL,               -- JSON: what its repositories' settings files say
    memory_mib  BIGINT NOT NULL,
    bytes       BIGINT,                       -- what it takes on the disk; NULL while it is being made
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (project_id, name)
);

-- What the claimed VMs of a project may connect to; a project without a row: everything public.
CREATE TABLE egress (
    project_id words PRIMARY KEY REFERENCES project (id) ON DELETE CASCADE,
    policy     words NOT NULL,                -- JSON
    updated_at BIGINT NOT NULL
);

-- What changed, in the order in which it was written: each row is part of the transaction that made the change. An id is never used
-- twice, also when all rows before it were removed.
CREATE TABLE event (
    id          BIGINT PRIMARY KEY,
    at          BIGINT NOT NULL,
    tenant      words NOT NULL,               -- who may see it: a project's rows outlive it
    project_id  words NOT NULL,
    instance_id words,
    kind        words NOT NULL,
    reason      words,
    detail      words NOT NULL                -- JSON object
);
CREATE INDEX event_by_project ON event (project_id, id);

-- Ids of events are taken in another order than that in which their transactions end, so a reader that has seen the newest one would miss
-- those that come later with smaller ids. Who takes ids says so by a shared lock that has the newest id of that moment in its name and
-- lasts as long as the transaction; readers read up to the smallest of those (`event_horizon`). Nobody waits for anybody.
CREATE SEQUENCE event_id OWNED BY event.id;

CREATE FUNCTION number_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A copied event brings its own.
    IF NEW.id IS NULL THEN
        -- 26725 << 48 ("he" in ASCII): ids have 48 bits.
        PERFORM pg_advisory_xact_lock_shared((26725::bigint << 48) | (SELECT last_value FROM event_id));
        NEW.id := nextval('event_id');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER number_event BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION number_event();

-- The id up to which no event comes any more that is not there. To be asked before the statement that reads: what had ended by now is
-- seen by that. The sequence first: who takes an id later takes a greater one.
CREATE FUNCTION event_horizon() RETURNS BIGINT LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    newest BIGINT;
    taken BIGINT;
BEGIN
    SELECT last_value INTO newest FROM event_id;
    SELECT min(((classid::bigint & 65535) << 32) | objid::bigint) INTO taken FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND (classid::bigint >> 16) = 26725
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database());
    RETURN least(newest, taken);
END $$;

-- Who did what: one row for each request that changes something, when it was answered. Never a body, never a secret.
CREATE TABLE audit (
    id          BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    at          BIGINT NOT NULL,              -- when the request came
    tenant      words NOT NULL,
    token_id    words NOT NULL,
    token_name  words NOT NULL,               -- as it was then: tokens go
    owner       words NOT NULL,
    address     words,                        -- where the request came from
    operation   words NOT NULL,               -- the operation's id in the OpenAPI document
    project_id  words,
    instance_id words,
    subject     words,                        -- what else the path names
    status      BIGINT NOT NULL,              -- of the answer
    request_id  words
);
CREATE INDEX audit_by_tenant ON audit (tenant, id);
CREATE INDEX audit_by_project ON audit (project_id, id);

-- What was claimed and made: written from the events, kept when the rows that it is about are gone.
CREATE TABLE claim_history (
    instance_id   words PRIMARY KEY,
    project_id    words NOT NULL,
    claimed_at    BIGINT NOT NULL,
    ended_at      BIGINT,
    ended_because words,
    owner         words,
    task          words,                      -- idempotency key
    source        words NOT NULL,
    cause         words,                      -- why it was not warm; NULL when it was
    wait_ms       BIGINT NOT NULL,
    total_ms      DOUBLE PRECISION,           -- from the request to the reply; NULL for forks of VMs in use
    recipe        words NOT NULL
);
CREATE INDEX claim_history_by_project ON claim_history (project_id, claimed_at);
CREATE INDEX claim_history_by_time ON claim_history (claimed_at);

CREATE TABLE boot_history (
    instance_id  words PRIMARY KEY,
    project_id   words NOT NULL,
    purpose      words NOT NULL,
    recipe       words NOT NULL,
    ordered_at   BIGINT NOT NULL,
    reason       words,                       -- why it was made
    ended_at     BIGINT,                      -- when it became ready or failed
    outcome      words,                       -- ready, failed
    failure      words,
    gone_at      BIGINT,                      -- when its VM began to go
    gone_because words,
    log          BYTEA                        -- its steps as JSON, deflated
);
CREATE INDEX boot_history_by_project ON boot_history (project_id, ordered_at);
CREATE INDEX boot_history_by_time ON boot_history (ordered_at);

-- Outgoing webhooks, and the events that are on their way to their receivers.
CREATE TABLE webhook (
    id         words PRIMARY KEY,
    tenant     words NOT NULL,
    project_id words,                         -- only its events
    url        words NOT NULL,
    kinds      words,                         -- JSON list; NULL: all
    secret     BYTEA NOT NULL,                -- sealed
    after      BIGINT NOT NULL,               -- the newest event when it was made: it gets later ones
    created_at BIGINT NOT NULL
);

CREATE TABLE webhook_delivery (
    id          words PRIMARY KEY,
    webhook_id  words NOT NULL REFERENCES webhook (id) ON DELETE CASCADE,
    event_id    BIGINT NOT NULL,
    kind        words NOT NULL,
    body        words NOT NULL,               -- what is posted
    status      words NOT NULL,               -- pending, delivered, failed
    attempts    BIGINT NOT NULL,
    next_at     BIGINT,                       -- NULL when it is not pending
    last_status BIGINT,
    last_error  words,
    created_at  BIGINT NOT NULL,
    UNIQUE (webhook_id, event_id)
);
CREATE INDEX webhook_delivery_due ON webhook_delivery (next_at) WHERE next_at IS NOT NULL;

-- Who is signed in to the pages. A session is a token's: it ends with it.
CREATE TABLE web_session (
    hash       words PRIMARY KEY,             -- SHA-256 of what the browser's cookie holds, hexadecimal
    token_id   words NOT NULL REFERENCES token (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX web_session_by_token ON web_session (token_id);

-- What clients of E2B said of a claim, beside what every claim has.
CREATE TABLE e2b_sandbox (
    instance_id    words PRIMARY KEY REFERENCES claim (instance_id) ON DELETE CASCADE,
    template       words NOT NULL,            -- the project or checkpoint, as it was asked for
    metadata       words NOT NULL,            -- JSON object of texts
    timeout_ms     BIGINT NOT NULL,
    auto_pause     BOOLEAN NOT NULL,          -- at its end it is paused, not released
    auto_resume    BOOLEAN NOT NULL,          -- a call into it resumes it
    public_traffic BOOLEAN NOT NULL,          -- its ports need no token
    network        words,                     -- JSON, as it was asked for
    ends_at        BIGINT,                    -- of one with auto_pause; the lease of its claim ends later
    paused_at      BIGINT                     -- its owner, or its end, paused it
);

-- What one claim may connect to, where that is less than its project's egress policy allows.
CREATE TABLE claim_egress (
    instance_id words PRIMARY KEY REFERENCES claim (instance_id) ON DELETE CASCADE,
    policy      words NOT NULL                -- JSON
);
