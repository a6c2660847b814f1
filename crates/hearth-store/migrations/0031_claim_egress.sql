-- What one claim may connect to, where that is less than its project's egress policy allows.
CREATE TABLE claim_egress (
    instance_id TEXT PRIMARY KEY REFERENCES claim (instance_id) ON DELETE CASCADE,
    policy      TEXT NOT NULL                -- JSON
) STRICT;
