-- Outgoing webhooks, and the events that are on their way to their receivers.
CREATE TABLE webhook (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    project_id TEXT,                        -- only its events
    url        TEXT NOT NULL,
    kinds      TEXT,                        -- JSON list; NULL: all
    secret     BLOB NOT NULL,               -- sealed
    after      INTEGER NOT NULL,            -- the newest event when it was made: it gets later ones
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE webhook_delivery (
    id          TEXT PRIMARY KEY,
    webhook_id  TEXT NOT NULL REFERENCES webhook (id) ON DELETE CASCADE,
    event_id    INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    body        TEXT NOT NULL,              -- what is posted
    status      TEXT NOT NULL,              -- pending, delivered, failed
    attempts    INTEGER NOT NULL,
    next_at     INTEGER,                    -- NULL when it is not pending
    last_status INTEGER,
    last_error  TEXT,
    created_at  INTEGER NOT NULL,
    UNIQUE (webhook_id, event_id)
) STRICT;
CREATE INDEX webhook_delivery_due ON webhook_delivery (next_at) WHERE next_at IS NOT NULL;
