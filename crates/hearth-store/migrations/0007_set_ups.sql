-- Where a set-up left the repositories, told before its last checkpoint was made; NULL for any other one.
ALTER TABLE checkpoint ADD COLUMN checkouts TEXT; -- JSON list of {commit, branch, gone}, in the repositories' order

-- The set-ups that a project's VMs were made by: what tells them apart, and the named commands that belonged to them.
CREATE TABLE set_up (
    project_id TEXT NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,               -- the first half of a recipe's name
    parts      TEXT NOT NULL,               -- JSON object: a digest of each part
    commands   TEXT NOT NULL,               -- JSON list of {repoFullName, name, command}
    PRIMARY KEY (project_id, name)
) STRICT;

-- The set-up that the project's pool is to follow, and since when.
ALTER TABLE project ADD COLUMN set_up TEXT;
ALTER TABLE project ADD COLUMN set_up_since INTEGER;

-- Somebody worked in the VM before it was claimed: what is in it need not be the set-up's.
ALTER TABLE instance ADD COLUMN worked_in INTEGER NOT NULL DEFAULT 0;
