-- What each watched branch was last seen at. Recipes of pools follow it.
CREATE TABLE tip (
    url        TEXT NOT NULL,
    branch     TEXT NOT NULL,
    commit_id  TEXT NOT NULL,               -- full hexadecimal name
    changed_at INTEGER NOT NULL,            -- when it was first seen at this commit
    PRIMARY KEY (url, branch)
) STRICT;

-- What the forks of a template hold: a fork needs no look at any repository.
ALTER TABLE template ADD COLUMN repos TEXT NOT NULL DEFAULT '[]';    -- JSON list of checkouts
ALTER TABLE template ADD COLUMN settings TEXT NOT NULL DEFAULT '[]'; -- JSON list: what their settings files say

-- A person said to try again: failures before this do not count against the recipe.
ALTER TABLE pool ADD COLUMN retried_at INTEGER;

-- Which server makes the pools as they are wished. Whoever holds it alone acts; a new holder counts up.
CREATE TABLE controller (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    holder     TEXT NOT NULL,               -- the server process
    generation INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
