-- Notifications: whom a project tells of what, and what is still to be told. A row of the outbox is written by triggers, in
-- the transaction that makes it true, so nothing that happened is forgotten and nothing that was rolled back is told.

CREATE TABLE notifications (
    id            text PRIMARY KEY,
    project_id    text NOT NULL REFERENCES projects ON DELETE CASCADE,
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    kind          text NOT NULL CHECK (kind IN ('mail', 'webhook')),
    target        text NOT NULL CHECK (length(target) BETWEEN 3 AND 1024),   -- an address, or a URL
    events        text[] NOT NULL CHECK (cardinality(events) BETWEEN 1 AND 16),
    secret_sealed bytea,                          -- webhook: what its deliveries are signed with
    enabled       boolean NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz
);
CREATE INDEX notifications_by_project ON notifications (project_id, created_at, id);

CREATE TABLE notification_outbox (
    id              text PRIMARY KEY,             -- the same in every attempt, so that a receiver knows a second one
    project_id      text NOT NULL,
    notification_id text NOT NULL REFERENCES notifications ON DELETE CASCADE,
    event           text NOT NULL,
    payload         jsonb NOT NULL,
    status          text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'sent', 'failed')),
    attempts        integer NOT NULL DEFAULT 0,
    next_at         timestamptz NOT NULL DEFAULT now(),
    last_error      text NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz
);
CREATE INDEX notification_outbox_due ON notification_outbox (next_at) WHERE status = 'waiting';
CREATE INDEX notification_outbox_of ON notification_outbox (notification_id, created_at DESC);
CREATE INDEX notification_outbox_ended ON notification_outbox (ended_at) WHERE status <> 'waiting';

CREATE FUNCTION tell(its_project text, its_event text, what jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO notification_outbox (id, project_id, notification_id, event, payload)
        SELECT gen_random_uuid()::text, n.project_id, n.id, its_event, what FROM notifications n
        WHERE n.project_id = its_project AND n.enabled AND its_event = ANY (n.events);
$$;

CREATE FUNCTION tell_of_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell(NEW.project_id,
        CASE WHEN NEW.operation_type = 'verify' AND jsonb_array_length(coalesce(NEW.outcome -> 'damaged_backups', '[]')) > 0
             THEN 'damage' ELSE 'failed' END,
        jsonb_build_object('operation', NEW.operation_type, 'task_id', NEW.id, 'vault_id', NEW.vault_id,
            'vault_name', NEW.vault_name, 'resource_id', NEW.resource_id, 'resource_name', NEW.resource_name,
            'backup_id', NEW.backup_id, 'error_code', NEW.error_code, 'error_message', NEW.error_message));
    RETURN NULL;
END $$;
CREATE TRIGGER operation_logs_tell AFTER UPDATE OF status ON operation_logs FOR EACH ROW
    WHEN (NEW.status IN ('failed', 'timeout') AND OLD.status NOT IN ('failed', 'timeout') AND NEW.listed)
    EXECUTE FUNCTION tell_of_task();
CREATE TRIGGER operation_logs_tell_at_once AFTER INSERT ON operation_logs FOR EACH ROW
    WHEN (NEW.status IN ('failed', 'timeout') AND NEW.listed) EXECUTE FUNCTION tell_of_task();

-- A restore point that is there, but without some of its resources.
CREATE FUNCTION tell_of_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    missing bigint := (SELECT count(*) FROM checkpoint_resources r WHERE r.project_id = NEW.project_id
                       AND r.checkpoint_id = NEW.id AND r.skipped_code IS NOT NULL);
BEGIN
    IF missing > 0 THEN
        PERFORM tell(NEW.project_id, 'partly', jsonb_build_object('checkpoint_id', NEW.id, 'vault_id', NEW.vault_id,
            'vault_name', NEW.vault_name, 'resources_skipped', missing));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER checkpoints_tell AFTER UPDATE OF status ON checkpoints FOR EACH ROW
    WHEN (OLD.status = 'protecting' AND NEW.status = 'available') EXECUTE FUNCTION tell_of_checkpoint();

CREATE FUNCTION tell_of_vault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell(NEW.project_id, 'nearly_full', jsonb_build_object('vault_id', NEW.id, 'vault_name', NEW.name,
        'used_bytes', NEW.used_bytes, 'size_gb', NEW.size_gb, 'threshold_percent', NEW.threshold));
    RETURN NULL;
END $$;
CREATE TRIGGER vaults_tell AFTER UPDATE OF used_bytes, size_gb, threshold ON vaults FOR EACH ROW
    WHEN (NOT NEW.demand_billing AND NEW.used_bytes >= NEW.size_gb::bigint * 10737418 * NEW.threshold
          AND OLD.used_bytes < OLD.size_gb::bigint * 10737418 * OLD.threshold)
    EXECUTE FUNCTION tell_of_vault();
