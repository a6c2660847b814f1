-- What an instance is made for: one of these, in place of four columns whose mixtures meant nothing.
ALTER TABLE instance ADD COLUMN purpose TEXT NOT NULL DEFAULT 'pool'
    CHECK (purpose IN ('pool', 'test', 'test-uncached', 'claim', 'renewal'));
UPDATE instance SET purpose = CASE
    WHEN is_test THEN iif(use_cache, 'test', 'test-uncached')
    WHEN is_build THEN 'renewal'
    WHEN reserved THEN 'claim'
    ELSE 'pool' END;
ALTER TABLE instance DROP COLUMN is_test;
ALTER TABLE instance DROP COLUMN is_build;
ALTER TABLE instance DROP COLUMN reserved;
ALTER TABLE instance DROP COLUMN use_cache;
-- A claim may get it: the pool's, or a waiting claim's own.
ALTER TABLE instance ADD COLUMN serves_claims INTEGER GENERATED ALWAYS AS (purpose IN ('pool', 'claim')) VIRTUAL;
-- What the stages since the parent left in the stage log.
ALTER TABLE checkpoint RENAME COLUMN pieces TO logs;
