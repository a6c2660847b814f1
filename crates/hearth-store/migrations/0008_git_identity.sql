-- Who makes the commits in a project's VMs, as JSON; NULL: the owner of the claiming token.
ALTER TABLE project ADD COLUMN git_identity TEXT;
