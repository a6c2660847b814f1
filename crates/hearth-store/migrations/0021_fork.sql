-- The checkpoint of a VM in use that an instance was forked from. Until its claim is handed over the fork is being made.
ALTER TABLE instance ADD COLUMN fork_of TEXT;

-- VMs that ran and are stopped for a moment, while a checkpoint of them is made: a server that finds one here resumes it.
CREATE TABLE stopped_vm (
    vm_id TEXT PRIMARY KEY
) STRICT;

-- Checkpoints that owners of claims made, by name. They are no templates.
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
