-- A backup of a machine is a family (docs/decisions/0009): its own row, whose root holds the machine's definition, and one
-- row a disk below it, each with a root. Tenants see one backup; every row has one root, as before.

-- What the last look at a machine showed: {"disks": [{"id", "name", "size_bytes", "is_boot"}], "power", "detail"}.
ALTER TABLE protectables ADD COLUMN machine jsonb NOT NULL DEFAULT '{}';

-- machine_id: of a disk's backup, the resource it is bound by: that of its parent. resource_id is the disk.
ALTER TABLE backups ADD COLUMN machine_id text;
ALTER TABLE backups ADD CONSTRAINT backups_of_machines CHECK ((parent_id IS NULL) = (machine_id IS NULL));
ALTER TABLE backups ADD CONSTRAINT backups_parent FOREIGN KEY (parent_id) REFERENCES backups ON DELETE CASCADE;
DROP INDEX backups_of_parent;
CREATE INDEX backups_of_parent ON backups (parent_id, project_id) WHERE parent_id IS NOT NULL;
CREATE INDEX backups_of_machine ON backups (vault_id, machine_id, resource_id, created_at DESC)
    WHERE machine_id IS NOT NULL;

-- Who changes the row of a machine's backup changes its disks with it: where it is, how long it stays, what is done to
-- it. A disk that a check found damaged keeps saying so, and one that is whole may be restored by itself, whatever became
-- of the others.
CREATE FUNCTION disks_follow_their_machine() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE backups c SET vault_id = NEW.vault_id, checkpoint_id = NEW.checkpoint_id, domain_id = NEW.domain_id,
        expired_at = NEW.expired_at, promised_until = NEW.promised_until, updated_at = NEW.updated_at,
        status = CASE
            WHEN NEW.status = OLD.status THEN c.status
            WHEN NEW.status IN ('waiting_delete', 'deleting', 'waiting_protect', 'protecting') THEN NEW.status
            WHEN OLD.status IN ('waiting_delete', 'deleting') OR c.root IS NULL OR c.damage IS NOT NULL THEN 'error'
            WHEN NEW.status = 'error' THEN 'available'
            ELSE NEW.status END
        WHERE c.project_id = NEW.project_id AND c.parent_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER backups_of_disks_follow
    AFTER UPDATE OF status, vault_id, checkpoint_id, domain_id, expired_at, promised_until ON backups FOR EACH ROW
    WHEN (NEW.parent_id IS NULL AND NEW.resource_type = 'OS::Nova::Server'
          AND (OLD.status, OLD.vault_id, OLD.checkpoint_id, OLD.domain_id, OLD.expired_at, OLD.promised_until)
          IS DISTINCT FROM
          (NEW.status, NEW.vault_id, NEW.checkpoint_id, NEW.domain_id, NEW.expired_at, NEW.promised_until))
    EXECUTE FUNCTION disks_follow_their_machine();
