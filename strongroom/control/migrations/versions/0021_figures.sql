-- What /metrics asks of all tenants, without reading all of them: few rows are damaged, few tasks are checks.

CREATE INDEX backups_damaged ON backups (project_id, vault_id) WHERE damage IS NOT NULL;
CREATE INDEX operation_logs_verified ON operation_logs (vault_id, ended_at DESC)
    WHERE operation_type = 'verify' AND status = 'success';
