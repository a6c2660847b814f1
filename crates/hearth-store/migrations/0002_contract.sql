-- A project's own limit and its setup object.
ALTER TABLE project ADD COLUMN max_vms INTEGER;
ALTER TABLE project ADD COLUMN setup TEXT;                       -- JSON, as it was saved

-- What the repositories' settings files say.
ALTER TABLE instance ADD COLUMN settings TEXT NOT NULL DEFAULT '[]'; -- JSON list of {repoFullName, file, settings}

-- Variables get an owner: '' for the shared ones, else the user whose personal ones they are.
CREATE TABLE owned_variable (
    project_id TEXT NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    owner      TEXT NOT NULL,
    name       TEXT NOT NULL,
    value      BLOB NOT NULL,               -- nonce and ciphertext, see secrets.rs
    updated_at INTEGER NOT NULL,
    updated_by TEXT,
    PRIMARY KEY (project_id, owner, name)
) STRICT;
INSERT INTO owned_variable SELECT project_id, '', name, value, updated_at, updated_by FROM variable;
DROP TABLE variable;
ALTER TABLE owned_variable RENAME TO variable;
