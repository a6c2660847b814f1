-- Which server runs what: several may share one store, each with VMs and checkpoints of its own. What is '' is of the time before that,
-- and the first server that begins has it from then on.
ALTER TABLE instance ADD COLUMN server words NOT NULL DEFAULT '';
ALTER TABLE named_checkpoint ADD COLUMN server words NOT NULL DEFAULT '';
ALTER TABLE stopped_vm ADD COLUMN server words NOT NULL DEFAULT '';

-- Two servers have checkpoints of one key: what they hold is the same, and each has its own files.
ALTER TABLE checkpoint ADD COLUMN server words NOT NULL DEFAULT '';
ALTER TABLE template ADD COLUMN server words NOT NULL DEFAULT '';
ALTER TABLE template DROP CONSTRAINT template_key_fkey;
ALTER TABLE checkpoint DROP CONSTRAINT checkpoint_pkey;
ALTER TABLE checkpoint ADD PRIMARY KEY (server, key);
ALTER TABLE template DROP CONSTRAINT template_pkey;
ALTER TABLE template ADD PRIMARY KEY (server, project_id, recipe);
ALTER TABLE template ADD FOREIGN KEY (server, key) REFERENCES checkpoint (server, key) ON UPDATE CASCADE ON DELETE CASCADE;
DROP INDEX template_by_key;
CREATE INDEX template_by_key ON template (server, key);

-- The servers of the store, and which of them a project's pool is at home on.
CREATE TABLE server (
    id         words PRIMARY KEY,             -- of its data folder
    place      words NOT NULL,                -- host and folder, for people; one place is one server
    url        words,                         -- where the others reach it
    version    words NOT NULL,
    session    words NOT NULL,                -- the process
    generation BIGINT NOT NULL,               -- counts up with every start
    memory_mib BIGINT NOT NULL,               -- what its VMs may have together
    started_at BIGINT NOT NULL,
    alive_until BIGINT NOT NULL               -- by the database's clock
);
CREATE TABLE home (
    project_id words PRIMARY KEY REFERENCES project (id) ON DELETE CASCADE,
    server     words NOT NULL,
    generation BIGINT NOT NULL,               -- counts up with every new home
    since      BIGINT NOT NULL
);
