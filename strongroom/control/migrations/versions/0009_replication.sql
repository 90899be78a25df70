-- Replication between regions (docs/decisions/0007). Both regions keep a record of each replica under the same id: the
-- source of what it asked for, the destination of what it makes.

ALTER TABLE operation_logs DROP CONSTRAINT operation_logs_operation_type_check;
ALTER TABLE operation_logs ADD CONSTRAINT operation_logs_operation_type_check CHECK (operation_type IN ('backup', 'restore',
    'delete', 'vault_delete', 'remove_resource', 'prune', 'verify', 'replication', 'copy'));

-- project_id, vault_id, backup_id: of this region. The other region's ids are those of the other side's members.
CREATE TABLE replication_records (
    id                        text NOT NULL,          -- given by the source
    side                      text NOT NULL CHECK (side IN ('source', 'destination')),
    project_id                text NOT NULL REFERENCES projects,
    vault_id                  text NOT NULL REFERENCES vaults ON DELETE CASCADE,
    backup_id                 text NOT NULL REFERENCES backups ON DELETE CASCADE,
    task_id                   text NOT NULL,          -- the operation log of this region that works on it
    status                    text NOT NULL CHECK (status IN ('waiting_replicate', 'replicating', 'success', 'fail', 'skip')),
    progress                  integer NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
    fail_code                 text NOT NULL DEFAULT '',
    fail_reason               text NOT NULL DEFAULT '',
    auto_trigger              boolean NOT NULL,
    source_region             text NOT NULL,
    source_project_id         text NOT NULL,
    source_vault_id           text NOT NULL,
    source_checkpoint_id      text NOT NULL,
    source_backup_id          text NOT NULL,
    source_backup_name        text NOT NULL,
    source_created_at         timestamptz NOT NULL,
    destination_region        text NOT NULL,
    destination_project_id    text NOT NULL,
    destination_vault_id      text NOT NULL,
    destination_checkpoint_id text,
    destination_backup_id     text,
    destination_backup_name   text,
    -- source: {"name", "description", "retention"} as asked for; destination: {"root", "domain_id", "retention", ...}
    details                   jsonb NOT NULL DEFAULT '{}',
    wrapped                   bytea,                  -- destination: the domain's keys as they came, until it has ended
    created_at                timestamptz NOT NULL,
    ended_at                  timestamptz,
    PRIMARY KEY (side, source_region, id),
    CHECK ((status IN ('success', 'fail', 'skip')) = (ended_at IS NOT NULL))
);
CREATE INDEX replication_records_of_backup ON replication_records (backup_id);
CREATE INDEX replication_records_of_vault ON replication_records (vault_id);
-- A backup has one replica in each region.
CREATE UNIQUE INDEX one_replica_per_region ON replication_records (backup_id, destination_region)
    WHERE side = 'source' AND status <> 'fail';
CREATE UNIQUE INDEX one_replica_here ON replication_records (project_id, source_region, source_backup_id)
    WHERE side = 'destination' AND status <> 'fail';
