-- Policies: when vaults are backed up by themselves, and what is kept of it.

CREATE TABLE policies (
    id                   text PRIMARY KEY,
    project_id           text NOT NULL REFERENCES projects,
    name                 text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    operation_type       text NOT NULL CHECK (operation_type IN ('backup', 'replication')),
    enabled              boolean NOT NULL,
    trigger_id           text NOT NULL,
    patterns             text[] NOT NULL CHECK (cardinality(patterns) BETWEEN 1 AND 24),   -- verbatim, in order
    time_zone            text,                   -- of the patterns, a name of the time zone database; NULL: UTC
    start_window_minutes integer CHECK (start_window_minutes BETWEEN 60 AND 480),
    start_at             timestamptz NOT NULL,   -- set once: every n-th day is counted from here
    definition           jsonb NOT NULL,         -- operation_definition: the members that were given
    retention_changed_at timestamptz NOT NULL,   -- a rule by count waits for a backup that ended after this
    created_at           timestamptz NOT NULL,
    updated_at           timestamptz
);
CREATE INDEX policies_by_project ON policies (project_id, created_at DESC, id DESC);

-- A vault has at most one policy of each kind. Locks: vault, then policy, then this row.
CREATE TABLE policy_vaults (
    project_id           text NOT NULL,
    vault_id             text NOT NULL REFERENCES vaults ON DELETE CASCADE,
    operation_type       text NOT NULL CHECK (operation_type IN ('backup', 'replication')),
    policy_id            text NOT NULL REFERENCES policies ON DELETE CASCADE,
    destination_vault_id text,                   -- of a replication
    next_fire_at         timestamptz,            -- NULL: the policy is disabled
    created_at           timestamptz NOT NULL,
    PRIMARY KEY (vault_id, operation_type)
);
CREATE INDEX policy_vaults_by_policy ON policy_vaults (policy_id);
CREATE INDEX policy_vaults_due ON policy_vaults (next_fire_at) WHERE next_fire_at IS NOT NULL;

-- retention_due_at: an automatic backup ended, and what the policy no longer keeps has not been deleted yet.
-- incrementals, last_full_at: automatic incremental backups since the last full one, and when that one was made.
ALTER TABLE vault_resources
    ADD COLUMN retention_due_at timestamptz,
    ADD COLUMN incrementals     integer NOT NULL DEFAULT 0 CHECK (incrementals >= 0),
    ADD COLUMN last_full_at     timestamptz;
CREATE INDEX vault_resources_retention ON vault_resources (retention_due_at) WHERE retention_due_at IS NOT NULL;

CREATE INDEX backups_expiring ON backups (expired_at)
    WHERE expired_at IS NOT NULL AND status IN ('available', 'error');
