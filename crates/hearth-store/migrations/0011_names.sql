-- What each field of a claim's request said, as hashes that are keyed with the token; NULL in claims of before.
ALTER TABLE claim ADD COLUMN asked TEXT; -- JSON object: field, hash
-- Whose token claimed: it is known still when the token is revoked.
ALTER TABLE claim ADD COLUMN owner TEXT;
UPDATE claim SET owner = (SELECT owner FROM token WHERE token.id = claim.token_id);

-- A name means one project of a tenant. Of several with one name the oldest keeps it; the others get the end of their id added.
UPDATE project SET name = trim(substr(name, 1, 150)) || '-' || substr(id, -8)
WHERE EXISTS (
    SELECT 1 FROM project AS older
    WHERE older.tenant = project.tenant AND lower(trim(older.name)) = lower(trim(project.name)) AND older.id < project.id
);
CREATE UNIQUE INDEX project_by_name ON project (tenant, lower(trim(name)));
