-- Who is signed in to the pages. A session is a token's: it ends with it.
CREATE TABLE web_session (
    hash       TEXT PRIMARY KEY,            -- SHA-256 of what the browser's cookie holds, hexadecimal
    token_id   TEXT NOT NULL REFERENCES token (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX web_session_by_token ON web_session (token_id);
