-- Sharing: a backup that other projects may read, through the vault it lies in, for as long as its row stands here.
-- Nothing is copied. The receiver accepts it into a vault of its own, which says where it is listed and restored from.

CREATE TABLE backup_members (
    id              text PRIMARY KEY,
    project_id      text NOT NULL REFERENCES projects,                     -- the owner's
    backup_id       text NOT NULL REFERENCES backups ON DELETE CASCADE,
    dest_project_id text NOT NULL REFERENCES projects ON DELETE CASCADE,   -- the receiver's
    status          text NOT NULL CHECK (status IN ('pending', 'accepted', 'rejected')),
    vault_id        text REFERENCES vaults,                                -- the receiver's
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz,
    UNIQUE (backup_id, dest_project_id),
    CHECK (dest_project_id <> project_id),
    CHECK ((status = 'accepted') = (vault_id IS NOT NULL))
);
CREATE INDEX backup_members_received ON backup_members (dest_project_id, created_at DESC, id DESC);
CREATE INDEX backup_members_in_vault ON backup_members (vault_id) WHERE vault_id IS NOT NULL;

-- What is on its way out is shared with nobody from that moment, whoever sends it: a request, expiry, a job.
CREATE FUNCTION end_shares_of_backup() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM backup_members WHERE project_id = NEW.project_id AND backup_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER backups_leave_shares AFTER UPDATE OF status ON backups FOR EACH ROW
    WHEN (NEW.status IN ('waiting_delete', 'deleting') AND OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION end_shares_of_backup();

CREATE FUNCTION end_shares_of_resource() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM backup_members m USING backups b WHERE b.project_id = NEW.project_id AND b.vault_id = NEW.vault_id
        AND b.resource_id = NEW.resource_id AND m.project_id = b.project_id AND m.backup_id = b.id;
    RETURN NULL;
END $$;
CREATE TRIGGER resources_leave_shares AFTER UPDATE OF protect_status ON vault_resources FOR EACH ROW
    WHEN (NEW.protect_status = 'removing' AND OLD.protect_status <> 'removing')
    EXECUTE FUNCTION end_shares_of_resource();

CREATE FUNCTION end_shares_of_vault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM backup_members m USING backups b WHERE b.project_id = NEW.project_id AND b.vault_id = NEW.id
        AND m.project_id = b.project_id AND m.backup_id = b.id;
    RETURN NULL;
END $$;
CREATE TRIGGER vaults_leave_shares AFTER UPDATE OF status ON vaults FOR EACH ROW
    WHEN (NEW.status = 'deleting' AND OLD.status <> 'deleting')
    EXECUTE FUNCTION end_shares_of_vault();

-- A receiver that deletes its vault no longer has what it accepted there.
CREATE FUNCTION reject_shares_in_vault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE backup_members SET status = 'rejected', vault_id = NULL, updated_at = now()
        WHERE dest_project_id = OLD.project_id AND vault_id = OLD.id;
    RETURN OLD;
END $$;
CREATE TRIGGER vaults_give_shares_up BEFORE DELETE ON vaults FOR EACH ROW EXECUTE FUNCTION reject_shares_in_vault();

-- A restore of a received backup: through which share it reads, and whose vault. Tasks outlive both: no foreign keys.
ALTER TABLE operation_logs
    ADD COLUMN member_id         text,
    ADD COLUMN lender_project_id text,
    ADD COLUMN lender_vault_id   text,
    ADD CONSTRAINT operation_logs_of_a_loan CHECK ((member_id IS NULL) = (lender_project_id IS NULL)
        AND (member_id IS NULL) = (lender_vault_id IS NULL));
CREATE INDEX operation_logs_by_member ON operation_logs (member_id)
    WHERE member_id IS NOT NULL AND status IN ('waiting', 'running');
CREATE INDEX operation_logs_by_lender ON operation_logs (lender_vault_id)
    WHERE lender_vault_id IS NOT NULL AND status = 'running';
