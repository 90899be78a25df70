-- Locked vaults keep their restore points for the time that was promised, against everybody who comes through this
-- database with statements of its owner's programs; a superuser who drops triggers is beyond the promise.

-- The clock of promises: it runs with the service and is never set. One row; at: how far it has come; ticked_at: the
-- database's time of its last tick.
CREATE TABLE promise_clock (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    at        timestamptz NOT NULL,
    ticked_at timestamptz NOT NULL
);
INSERT INTO promise_clock (at, ticked_at) VALUES (now(), now());

-- keep_manual: backups that somebody asked for are kept as well; the contract's default is that they are not.
ALTER TABLE vaults ADD COLUMN keep_manual boolean NOT NULL DEFAULT false;
-- By the clock of promises. NULL: nothing is promised, or no time was set.
ALTER TABLE backups ADD COLUMN promised_until timestamptz;

CREATE FUNCTION keep_promise_clock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.at < OLD.at OR NEW.at > OLD.at + interval '1 hour' THEN
        RAISE EXCEPTION 'the clock of promises runs; nobody sets it';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER promise_clock_runs BEFORE UPDATE OR DELETE ON promise_clock
    FOR EACH ROW EXECUTE FUNCTION keep_promise_clock();

CREATE FUNCTION keep_lock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.locked AND NOT NEW.locked) OR (OLD.locked AND OLD.keep_manual AND NOT NEW.keep_manual) THEN
        RAISE EXCEPTION 'vault % is locked and stays so', OLD.id;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER vaults_stay_locked BEFORE UPDATE OF locked, keep_manual ON vaults
    FOR EACH ROW EXECUTE FUNCTION keep_lock();

CREATE FUNCTION keep_promise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.promised_until IS NULL OR OLD.root IS NULL
       OR OLD.promised_until <= (SELECT at FROM promise_clock) THEN
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    IF TG_OP = 'DELETE' OR NEW.promised_until IS NULL OR NEW.promised_until < OLD.promised_until
       OR NEW.root IS DISTINCT FROM OLD.root OR NEW.status IN ('waiting_delete', 'deleting') THEN
        RAISE EXCEPTION 'backup % is promised until %', OLD.id, OLD.promised_until;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER backups_keep_promises BEFORE UPDATE OF promised_until, root, status OR DELETE ON backups
    FOR EACH ROW EXECUTE FUNCTION keep_promise();
