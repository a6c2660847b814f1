-- What clients of E2B said of a claim, beside what every claim has.
CREATE TABLE e2b_sandbox (
    instance_id    TEXT PRIMARY KEY REFERENCES claim (instance_id) ON DELETE CASCADE,
    template       TEXT NOT NULL,              -- the project or checkpoint, as it was asked for
    metadata       TEXT NOT NULL,              -- JSON object of texts
    timeout_ms     INTEGER NOT NULL,
    auto_pause     INTEGER NOT NULL,           -- at its end it is paused, not released
    auto_resume    INTEGER NOT NULL,           -- a call into it resumes it
    public_traffic INTEGER NOT NULL,           -- its ports need no token
    network        TEXT,                       -- JSON, as it was asked for
    ends_at        INTEGER,                    -- of one with auto_pause; the lease of its claim ends later
    paused_at      INTEGER                     -- its owner, or its end, paused it
) STRICT;
