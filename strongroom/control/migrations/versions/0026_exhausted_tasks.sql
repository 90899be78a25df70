-- What every worker asks for every few seconds: tasks whose attempts are used up (tasks.ATTEMPTS_MAX). Few are; without
-- this, all that wait were read for them.

CREATE INDEX operation_logs_exhausted ON operation_logs (worker_group, created_at)
    WHERE attempts >= 5 AND status IN ('waiting', 'running');
