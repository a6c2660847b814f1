-- When a pool keeps another number of VMs ready than `target_size`; NULL: never.
ALTER TABLE pool ADD COLUMN schedule TEXT;  -- JSON
