-- VMs that stand ready in pools, and nothing besides.
CREATE TABLE vm (id bigint PRIMARY KEY, pool int NOT NULL, state text NOT NULL, claimed_at timestamptz);
INSERT INTO vm SELECT n, 1 + n % :pools, 'ready', NULL FROM generate_series(1, :rows) n;
CREATE INDEX ON vm (pool, id) WHERE state = 'ready';
VACUUM ANALYZE vm;
CHECKPOINT;
