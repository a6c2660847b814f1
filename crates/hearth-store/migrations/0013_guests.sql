-- The boot of the guest in which an instance was made ready (or, of a claimed one, in which it is now): another one means that the
-- guest has restarted, and that every process of the set-up is gone.
ALTER TABLE instance ADD COLUMN boot_id TEXT;
-- When it was last noticed that it had.
ALTER TABLE instance ADD COLUMN rebooted_at INTEGER;
