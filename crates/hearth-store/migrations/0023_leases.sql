-- What a project says of its claims: how many there may be, when their VMs are paused, and when the end of a lease is warned of.
ALTER TABLE project ADD COLUMN max_claims INTEGER;                              -- NULL: no limit of its own
ALTER TABLE project ADD COLUMN idle_pause_minutes INTEGER;                      -- NULL: never
ALTER TABLE project ADD COLUMN idle_pause_to_disk INTEGER NOT NULL DEFAULT 0;
ALTER TABLE project ADD COLUMN lease_warning_minutes INTEGER NOT NULL DEFAULT 10;
-- Why a claimed VM was last paused, when Hearth did it: NULL when its owner did. Whether it is paused, the driver knows.
ALTER TABLE claim ADD COLUMN paused_because TEXT;
