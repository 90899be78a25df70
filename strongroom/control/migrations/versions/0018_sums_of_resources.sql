-- The list of vaults tells of each resource how many restore points it has and what they store: from the index alone,
-- so stored_bytes stands in it too. It changes only together with the status, which stands in it already.
DROP INDEX backups_by_resource;
CREATE INDEX backups_by_resource ON backups (vault_id, resource_id, created_at DESC)
    INCLUDE (status, project_id, stored_bytes);
