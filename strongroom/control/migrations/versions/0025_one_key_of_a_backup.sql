-- One foreign key in place of three: a backup belongs to the vault and the project of its checkpoint, and now the
-- database says so. It is also looked up once a row, not three times, and no run locks the row of its project any more
-- (docs/benchmarks/api.md). Looked at when a transaction ends: a move changes checkpoints first, then their backups.

ALTER TABLE checkpoints ADD CONSTRAINT checkpoints_of_vault UNIQUE (id, vault_id, project_id);
ALTER TABLE backups
    DROP CONSTRAINT backups_project_id_fkey,
    DROP CONSTRAINT backups_vault_id_fkey,
    DROP CONSTRAINT backups_checkpoint_id_fkey,
    ADD CONSTRAINT backups_of_checkpoint FOREIGN KEY (checkpoint_id, vault_id, project_id)
        REFERENCES checkpoints (id, vault_id, project_id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED;

-- Projects are never deleted, and a task's is that of a vault or a backup that its transaction has locked: 256 looks at
-- the same row, and a lock on it that every run of the project shares, said nothing more.
ALTER TABLE operation_logs DROP CONSTRAINT operation_logs_project_id_fkey;

-- Two updates a run and resource, of no indexed column: with room in the page they touch no index.
ALTER TABLE vault_resources SET (fillfactor = 60);
