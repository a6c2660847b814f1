-- What the claimed VMs of a project may connect to; a project without a row: everything public.
CREATE TABLE egress (
    project_id TEXT PRIMARY KEY REFERENCES project (id) ON DELETE CASCADE,
    policy     TEXT NOT NULL,                -- JSON
    updated_at INTEGER NOT NULL
) STRICT;
