\set pool random(1, :pools)
UPDATE vm SET state = 'claimed', claimed_at = clock_timestamp() WHERE id = (SELECT id FROM vm WHERE pool = :pool AND state = 'ready' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id;
