-- What an event stream tells is the rows themselves: each carries the number of the transaction that changed it last.
-- Everything below the oldest transaction under way (pg_snapshot_xmin) is final, so a number is a place to go on from.

ALTER TABLE operation_logs
    ADD COLUMN total_exact  boolean NOT NULL DEFAULT false,   -- bytes_total is counted, not what there was at the last look
    ADD COLUMN rate_bytes_s bigint,                           -- of the last seconds; NULL: not running, or too early to tell
    ADD COLUMN change       bigint NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN change bigint NOT NULL DEFAULT 0;
CREATE INDEX operation_logs_by_change ON operation_logs (project_id, change, id);
CREATE INDEX checkpoints_by_change ON checkpoints (project_id, change, id);

CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.change := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;
CREATE TRIGGER operation_logs_made BEFORE INSERT ON operation_logs FOR EACH ROW EXECUTE FUNCTION note_change();
-- A lease that is extended is no event.
CREATE TRIGGER operation_logs_changed BEFORE UPDATE ON operation_logs FOR EACH ROW
    WHEN ((OLD.status, OLD.attempts, OLD.cancel_requested, OLD.progress, OLD.bytes_done, OLD.bytes_total, OLD.total_exact,
           OLD.entries_done, OLD.rate_bytes_s, OLD.outcome, OLD.error_code, OLD.error_message)
          IS DISTINCT FROM
          (NEW.status, NEW.attempts, NEW.cancel_requested, NEW.progress, NEW.bytes_done, NEW.bytes_total, NEW.total_exact,
           NEW.entries_done, NEW.rate_bytes_s, NEW.outcome, NEW.error_code, NEW.error_message))
    EXECUTE FUNCTION note_change();
CREATE TRIGGER checkpoints_made_or_changed BEFORE INSERT OR UPDATE ON checkpoints FOR EACH ROW EXECUTE FUNCTION note_change();
