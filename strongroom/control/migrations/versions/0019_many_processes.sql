-- Many processes on one database.

-- Claims walk from tenant to tenant and from vault to vault by this index (control/claiming.py); what runs is few.
DROP INDEX operation_logs_open;
CREATE INDEX operation_logs_waiting ON operation_logs (worker_group, project_id, (coalesce(vault_id, '')),
    (coalesce(not_before, '-infinity'::timestamptz)), created_at, id) WHERE status = 'waiting';
CREATE INDEX operation_logs_running ON operation_logs (vault_id) WHERE status = 'running';

-- The host that a source lies on, where a registration names it: it has a limit of its own.
ALTER TABLE protectables ADD COLUMN source_host text NOT NULL DEFAULT '' CHECK (length(source_host) <= 64);
ALTER TABLE operation_logs ADD COLUMN source_host text NOT NULL DEFAULT '';

-- What needs the store only runs in any group.
UPDATE operation_logs SET worker_group = '*'
    WHERE status IN ('waiting', 'running') AND operation_type NOT IN ('backup', 'restore');

-- The state folder of the process that opened a session without a task: who has its lock knows that the process is dead.
ALTER TABLE sessions ADD COLUMN place text;

-- The processes there are, as they say every few seconds, and the oldest program that may work with this schema.
CREATE TABLE programs (
    id           text PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('serve', 'api', 'worker')),
    host         text NOT NULL,
    process      integer NOT NULL,
    version      text NOT NULL,
    schema       text NOT NULL,                  -- the newest revision that it knows
    worker_group text,                           -- NULL: it runs no tasks
    started_at   timestamptz NOT NULL,
    seen_at      timestamptz NOT NULL
);
CREATE TABLE schema_window (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    oldest_program text NOT NULL                 -- a program that knows no newer revision than this one still works
);
INSERT INTO schema_window (oldest_program) VALUES ('0019');
