-- What changed, in the order in which it was written: each row is part of the transaction that made the change. An id is never used
-- twice, also when all rows before it were removed.
CREATE TABLE event (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    tenant      TEXT NOT NULL,               -- who may see it: a project's rows outlive it
    project_id  TEXT NOT NULL,
    instance_id TEXT,
    kind        TEXT NOT NULL,
    reason      TEXT,
    detail      TEXT NOT NULL                -- JSON object
) STRICT;
CREATE INDEX event_by_project ON event (project_id, id);
