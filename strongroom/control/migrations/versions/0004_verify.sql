-- Verify: a task of its own, one a vault, and its findings where the backup's status comes from.

ALTER TABLE operation_logs DROP CONSTRAINT operation_logs_operation_type_check;
ALTER TABLE operation_logs ADD CONSTRAINT operation_logs_operation_type_check CHECK (operation_type IN ('backup', 'restore',
    'delete', 'vault_delete', 'remove_resource', 'prune', 'verify'));
CREATE UNIQUE INDEX one_verify_per_vault ON operation_logs (vault_id)
    WHERE operation_type = 'verify' AND status IN ('waiting', 'running');

-- {"reason", "files", "paths", "task", "found_at"}; NULL: nothing is known to be wrong. Never reported as restorable then.
ALTER TABLE backups ADD COLUMN damage jsonb;
ALTER TABLE backups ADD CONSTRAINT backups_damaged_are_not_available CHECK (damage IS NULL OR status <> 'available');
