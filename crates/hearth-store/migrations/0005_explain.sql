-- What a hand-over saw and where its time went. Written with the reply, or some seconds later; nothing where the server was
-- killed in between.
ALTER TABLE claim ADD COLUMN hand_over TEXT; -- JSON
