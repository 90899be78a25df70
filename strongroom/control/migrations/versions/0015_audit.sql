-- Who did what from where. Rows are only added, and go by their age alone, counted by the clock of promises (0005): neither a
-- request nor a clock that is set forward makes them go. A superuser who drops triggers is beyond that.

CREATE TABLE audit_log (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL,
    kept_from  timestamptz NOT NULL,            -- by the clock of promises, set by the trigger
    project_id text NOT NULL,                   -- no foreign key: it outlives what it tells of. '': of no project
    user_id    text NOT NULL,                   -- '': nobody who could prove it
    user_name  text NOT NULL,                   -- of a failed login: who it claimed to be
    address    text NOT NULL,
    operation  text NOT NULL,                   -- operationId
    objects    jsonb NOT NULL,                  -- names and ids in the request's path
    outcome    text NOT NULL CHECK (outcome IN ('done', 'refused')),
    status     integer NOT NULL,
    error_code text NOT NULL DEFAULT '',
    request_id text NOT NULL,
    left_out   integer NOT NULL DEFAULT 0       -- refusals before this one that were too many to be recorded
);
CREATE INDEX audit_log_by_project ON audit_log (project_id, id DESC);
CREATE INDEX audit_log_by_time ON audit_log (at);
CREATE INDEX audit_log_by_age ON audit_log (kept_from);

CREATE FUNCTION keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.kept_from := (SELECT at FROM promise_clock);
        RETURN NEW;
    END IF;
    IF TG_OP = 'DELETE' THEN
        IF OLD.kept_from <= (SELECT at FROM promise_clock) - interval '30 days' THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'the audit log is only added to';
END $$;
CREATE TRIGGER audit_log_kept BEFORE INSERT OR UPDATE OR DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION keep_audit();
CREATE TRIGGER audit_log_not_emptied BEFORE TRUNCATE ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION keep_audit();
