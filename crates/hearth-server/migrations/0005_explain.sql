-- What a hand-over saw and where its time went. Written with the reply, or a moment after it; nothing where the server ended
-- in between.
ALTER TABLE claim ADD COLUMN hand_over TEXT; -- JSON
