-- Whether the VM of a claim became the task's own: only then the claim was answered. Claims of before count as answered.
ALTER TABLE claim ADD COLUMN handed_over INTEGER NOT NULL DEFAULT 1;
