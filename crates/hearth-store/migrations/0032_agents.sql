-- What a token for an agent is held to; NULL: nothing beside its scopes.
ALTER TABLE token ADD COLUMN name_prefix TEXT;     -- it reaches the projects whose names begin so
ALTER TABLE token ADD COLUMN max_vms     INTEGER;  -- so many VMs its claims may hold at once
-- The session whose end releases the VM; NULL: the claim ends otherwise.
ALTER TABLE claim ADD COLUMN release_session TEXT;
CREATE INDEX claim_by_release_session ON claim (release_session) WHERE release_session IS NOT NULL;
