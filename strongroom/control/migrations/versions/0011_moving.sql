-- Operations on what a vault holds: the time of all its restore points, resources that move to another vault with their
-- backups, and restore points of the store that get rows.

ALTER TABLE operation_logs DROP CONSTRAINT operation_logs_operation_type_check;
ALTER TABLE operation_logs ADD CONSTRAINT operation_logs_operation_type_check CHECK (operation_type IN ('backup', 'restore',
    'delete', 'vault_delete', 'remove_resource', 'prune', 'verify', 'replication', 'copy', 'expiration',
    'migrate', 'sync'));
CREATE UNIQUE INDEX one_expiration_per_vault ON operation_logs (vault_id)
    WHERE operation_type = 'expiration' AND status IN ('waiting', 'running');

-- A resource that moves to another vault keeps the shares of its backups: they go along, and are read from there.
CREATE OR REPLACE FUNCTION end_shares_of_resource() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM operation_logs o WHERE o.project_id = NEW.project_id AND o.vault_id = NEW.vault_id
               AND o.operation_type = 'migrate' AND o.status IN ('waiting', 'running')
               AND o.parameters -> 'resources' ? NEW.resource_id) THEN
        RETURN NULL;
    END IF;
    DELETE FROM backup_members m USING backups b WHERE b.project_id = NEW.project_id AND b.vault_id = NEW.vault_id
        AND b.resource_id = NEW.resource_id AND m.project_id = b.project_id AND m.backup_id = b.id;
    RETURN NULL;
END $$;
