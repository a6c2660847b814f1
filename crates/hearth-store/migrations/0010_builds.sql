-- A VM that is gone, and boots that a restart of the server interrupted.
ALTER TABLE instance ADD COLUMN vm_ended_at INTEGER;                 -- when a VM whose record stays was removed
ALTER TABLE instance ADD COLUMN vm_ended_why TEXT;                   -- and why, for people
ALTER TABLE instance ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0; -- how often a server ended in the middle of its boot
ALTER TABLE instance ADD COLUMN interrupted_at INTEGER;              -- when the next server found it so
