-- The foundation. Rules that must hold are kept here, by the database; Python repeats them only for a better message.
-- Every tenant table carries project_id and every index on one begins with it, or with a key that implies it.
-- Times are timestamptz; sizes are bytes (bigint), converted to GB and MB only at the API.

-- identity (contract/identity.md) -------------------------------------------------------------------------------------

CREATE TABLE domains (
    id          text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{32}$' OR id = 'default'),
    name        text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 64),
    created_at  timestamptz NOT NULL
);

CREATE TABLE projects (
    id          text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{32}$'),
    domain_id   text NOT NULL REFERENCES domains,
    name        text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    description text NOT NULL DEFAULT '',
    enabled     boolean NOT NULL DEFAULT true,
    created_at  timestamptz NOT NULL,
    UNIQUE (domain_id, name)
);

CREATE TABLE users (
    id            text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{32}$'),
    domain_id     text NOT NULL REFERENCES domains,
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    password_hash text NOT NULL,                 -- argon2id, encoded form
    enabled       boolean NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL,
    UNIQUE (domain_id, name)
);

-- A role on a project; a row whose project_id is NULL is a role on the user's domain (the operator's `admin`).
CREATE TABLE role_assignments (
    user_id    text NOT NULL REFERENCES users ON DELETE CASCADE,
    project_id text REFERENCES projects ON DELETE CASCADE,
    role       text NOT NULL CHECK (length(role) BETWEEN 1 AND 64),
    UNIQUE NULLS NOT DISTINCT (user_id, project_id, role)
);

CREATE TABLE access_keys (
    access_key    text PRIMARY KEY CHECK (length(access_key) BETWEEN 16 AND 64),
    user_id       text NOT NULL REFERENCES users ON DELETE CASCADE,
    secret_sealed bytea NOT NULL,                -- encrypted by the ring derived from the master key
    enabled       boolean NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL
);

-- Replay fence for signed requests that change something (RULINGS 20), shared by all api processes.
CREATE TABLE seen_signatures (
    signature bytea PRIMARY KEY,
    seen_at   timestamptz NOT NULL
);
CREATE INDEX seen_signatures_age ON seen_signatures (seen_at);

-- what may be protected -----------------------------------------------------------------------------------------------

CREATE TABLE protectables (
    id            text PRIMARY KEY,
    project_id    text NOT NULL REFERENCES projects,
    type          text NOT NULL CHECK (type IN ('server', 'disk', 'turbo', 'native')),   -- the API's protectable_type
    resource_type text NOT NULL CHECK (resource_type IN ('OS::Nova::Server', 'OS::Cinder::Volume',
                      'OS::Ironic::BareMetalServer', 'OS::Native::Server', 'OS::Sfs::Turbo')),
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    path          bytea NOT NULL CHECK (length(path) BETWEEN 1 AND 4096),   -- on the worker's host
    worker_group  text NOT NULL DEFAULT 'default',
    options       jsonb NOT NULL DEFAULT '{}',     -- exclude[], one_file_system, read_limit_bytes_s, privileged
    size_bytes    bigint NOT NULL DEFAULT 0 CHECK (size_bytes >= 0),   -- at the last inspection
    status        text NOT NULL DEFAULT 'available',
    created_at    timestamptz NOT NULL,
    removed_at    timestamptz                      -- kept, so that restore points keep their name
);
CREATE INDEX protectables_by_project ON protectables (project_id, type, created_at DESC, id DESC);
CREATE UNIQUE INDEX protectables_path ON protectables (project_id, worker_group, path) WHERE removed_at IS NULL;

-- vaults --------------------------------------------------------------------------------------------------------------

CREATE TABLE vaults (
    id                      text PRIMARY KEY,
    project_id              text NOT NULL REFERENCES projects,
    user_id                 text NOT NULL,
    name                    text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    description             text CHECK (length(description) <= 255),
    provider_id             text NOT NULL,
    object_type             text NOT NULL,
    protect_type            text NOT NULL CHECK (protect_type IN ('backup', 'replication', 'hybrid')),
    consistent_level        text NOT NULL CHECK (consistent_level IN ('crash_consistent', 'app_consistent')),
    size_gb                 integer NOT NULL CHECK (size_gb BETWEEN 1 AND 10485760),
    cloud_type              text NOT NULL DEFAULT 'public',
    charging_mode           text NOT NULL DEFAULT 'post_paid',
    is_multi_az             boolean NOT NULL DEFAULT false,
    status                  text NOT NULL DEFAULT 'available'
                            CHECK (status IN ('available', 'lock', 'frozen', 'deleting', 'error')),
    enterprise_project_id   text NOT NULL DEFAULT '0',
    auto_bind               boolean NOT NULL DEFAULT false,
    bind_rules              jsonb NOT NULL DEFAULT '{}',
    auto_expand             boolean NOT NULL DEFAULT false,
    threshold               integer NOT NULL DEFAULT 80 CHECK (threshold BETWEEN 1 AND 100),
    smn_notify              boolean NOT NULL DEFAULT true,
    backup_name_prefix      text CHECK (length(backup_name_prefix) <= 32),
    demand_billing          boolean NOT NULL DEFAULT false,
    locked                  boolean NOT NULL DEFAULT false,
    availability_zone       text,
    sys_lock_source_service text,
    used_bytes              bigint NOT NULL DEFAULT 0 CHECK (used_bytes >= 0),  -- live sealed bytes (RULINGS 19)
    created_at              timestamptz NOT NULL,
    updated_at              timestamptz
);
CREATE INDEX vaults_by_project ON vaults (project_id, created_at DESC, id DESC);

CREATE TABLE vault_tags (
    project_id text NOT NULL,
    vault_id   text NOT NULL REFERENCES vaults ON DELETE CASCADE,
    key        text NOT NULL CHECK (length(key) BETWEEN 1 AND 127),
    value      text NOT NULL DEFAULT '' CHECK (length(value) <= 255),
    PRIMARY KEY (vault_id, key)
);

CREATE TABLE vault_resources (
    project_id        text NOT NULL,
    vault_id          text NOT NULL REFERENCES vaults ON DELETE CASCADE,
    resource_id       text NOT NULL REFERENCES protectables,
    protect_type      text NOT NULL,             -- of the vault; a resource is in one vault per kind
    type              text NOT NULL,             -- OS::...
    name              text NOT NULL,
    size_bytes        bigint NOT NULL DEFAULT 0,
    protect_status    text NOT NULL DEFAULT 'available'
                      CHECK (protect_status IN ('available', 'error', 'protecting', 'restoring', 'removing')),
    status_reason     text,                      -- why it is in error: "half restored: run the restore again"
    auto_protect      boolean NOT NULL DEFAULT true,
    extra_info        jsonb NOT NULL DEFAULT '{}',
    created_at        timestamptz NOT NULL,
    PRIMARY KEY (vault_id, resource_id),
    UNIQUE (resource_id, protect_type)
);

-- The database's copy of what the store holds in keys/ (RULINGS 12), and the engine's sessions (RULINGS 9).
CREATE TABLE vault_keys (
    project_id text NOT NULL,
    vault_id   text PRIMARY KEY REFERENCES vaults ON DELETE CASCADE,
    wrapped    bytea NOT NULL
);

-- restore points ------------------------------------------------------------------------------------------------------

CREATE TABLE checkpoints (
    id             text PRIMARY KEY,
    project_id     text NOT NULL REFERENCES projects,
    vault_id       text NOT NULL REFERENCES vaults ON DELETE CASCADE,
    vault_name     text NOT NULL,                -- as it was at creation
    provider_id    text NOT NULL,
    status         text NOT NULL CHECK (status IN ('available', 'deleting', 'protecting', 'deleted', 'error-deleting', 'error')),
    name           text NOT NULL,
    description    text,
    retention_days integer NOT NULL DEFAULT -1,
    auto_trigger   boolean NOT NULL DEFAULT false,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz
);
CREATE INDEX checkpoints_by_project ON checkpoints (project_id, created_at DESC, id DESC);
CREATE INDEX checkpoints_by_vault ON checkpoints (vault_id);

-- One row per resource of a run. Skipped ones (busy at the start, or failed) carry code and reason (RULINGS 18).
CREATE TABLE checkpoint_resources (
    project_id     text NOT NULL,
    checkpoint_id  text NOT NULL REFERENCES checkpoints ON DELETE CASCADE,
    resource_id    text NOT NULL,
    position       integer NOT NULL,             -- order of the request
    type           text NOT NULL,
    name           text NOT NULL,
    size_bytes     bigint NOT NULL DEFAULT 0,
    extra_info     text,
    skipped_code   text,
    skipped_reason text,
    PRIMARY KEY (checkpoint_id, resource_id),
    CHECK ((skipped_code IS NULL) = (skipped_reason IS NULL))
);

CREATE TABLE backups (
    id               text PRIMARY KEY,
    project_id       text NOT NULL REFERENCES projects,
    vault_id         text NOT NULL REFERENCES vaults ON DELETE CASCADE,
    checkpoint_id    text NOT NULL REFERENCES checkpoints ON DELETE CASCADE,
    resource_id      text NOT NULL,
    resource_type    text NOT NULL,
    resource_name    text NOT NULL,
    resource_size_bytes bigint NOT NULL DEFAULT 0,
    name             text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    description      text CHECK (length(description) <= 255),
    provider_id      text NOT NULL,
    image_type       text NOT NULL DEFAULT 'backup' CHECK (image_type IN ('backup', 'replication')),
    parent_id        text,
    status           text NOT NULL CHECK (status IN ('available', 'protecting', 'deleting', 'restoring', 'error',
                         'waiting_protect', 'waiting_delete', 'waiting_restore')),
    incremental      boolean NOT NULL,           -- as requested (contract: terraform filters on it)
    auto_trigger     boolean NOT NULL DEFAULT false,
    enterprise_project_id text NOT NULL DEFAULT '0',
    stored_bytes     bigint NOT NULL DEFAULT 0,  -- sealed bytes this backup added
    report           jsonb NOT NULL DEFAULT '{}',-- bytes read and new, entries, changed while read, full_reason, ...
    root             text,                       -- name of the root object; NULL until committed (RULINGS 7)
    point_token      bytea,                      -- the source's token, parent of the next run
    created_at       timestamptz NOT NULL,
    protected_at     timestamptz,
    updated_at       timestamptz,
    expired_at       timestamptz,
    CHECK (status NOT IN ('available', 'restoring', 'waiting_restore') OR root IS NOT NULL)
);
CREATE INDEX backups_by_project ON backups (project_id, created_at DESC, id DESC);
CREATE INDEX backups_by_checkpoint ON backups (checkpoint_id);
CREATE INDEX backups_by_resource ON backups (vault_id, resource_id, created_at DESC) INCLUDE (status);

-- operation logs: the tenant's log and the task, one row (RULINGS 1) ----------------------------------------------------

CREATE TABLE operation_logs (
    id              text PRIMARY KEY,
    project_id      text NOT NULL REFERENCES projects,
    operation_type  text NOT NULL CHECK (operation_type IN ('backup', 'restore', 'delete', 'vault_delete',
                        'remove_resource', 'prune')),
    listed          boolean NOT NULL DEFAULT true,   -- prune is housekeeping, not a tenant's operation
    status          text NOT NULL CHECK (status IN ('waiting', 'running', 'success', 'skipped', 'failed', 'timeout')),
    vault_id        text,                            -- no foreign key: logs outlive what they tell about
    vault_name      text,
    provider_id     text,
    checkpoint_id   text,
    policy_id       text,
    backup_id       text,
    backup_name     text,
    resource_id     text,
    resource_type   text,
    resource_name   text,
    target_resource_id   text,                       -- restore
    target_resource_name text,
    request_id      text NOT NULL,
    parameters      jsonb NOT NULL DEFAULT '{}',     -- what the request asked for; written once
    outcome         jsonb NOT NULL DEFAULT '{}',     -- what came of it: counts, warnings, left out
    error_code      text NOT NULL DEFAULT '',
    error_message   text NOT NULL DEFAULT '',
    error_detail    text NOT NULL DEFAULT '',        -- for operators
    created_at      timestamptz NOT NULL,
    started_at      timestamptz,
    ended_at        timestamptz,
    updated_at      timestamptz NOT NULL,
    -- the task
    generation      integer NOT NULL DEFAULT 0,      -- fences every later write of an attempt
    attempts        integer NOT NULL DEFAULT 0,
    worker_group    text NOT NULL DEFAULT 'default',
    worker          text,
    lease_until     timestamptz,
    not_before      timestamptz,                     -- a retry waits
    cancel_requested boolean NOT NULL DEFAULT false,
    progress        integer NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
    bytes_done      bigint NOT NULL DEFAULT 0,
    bytes_total     bigint NOT NULL DEFAULT 0,
    entries_done    bigint NOT NULL DEFAULT 0,
    state           jsonb NOT NULL DEFAULT '{}',     -- what the next attempt needs (done ranges of a device)
    CHECK ((status = 'running') = (lease_until IS NOT NULL)),
    CHECK ((status IN ('success', 'skipped', 'failed', 'timeout')) = (ended_at IS NOT NULL))
);
CREATE INDEX operation_logs_by_project ON operation_logs (project_id, created_at DESC, id DESC);
CREATE INDEX operation_logs_of_vault ON operation_logs (vault_id, created_at DESC, id DESC);
CREATE INDEX operation_logs_open ON operation_logs (worker_group, created_at) WHERE status IN ('waiting', 'running');
CREATE INDEX operation_logs_by_vault ON operation_logs (vault_id) WHERE status IN ('waiting', 'running');
-- A resource is backed up once at a time, a target is restored once at a time, a backup is deleted once.
CREATE UNIQUE INDEX one_backup_per_resource ON operation_logs (resource_id)
    WHERE operation_type = 'backup' AND status IN ('waiting', 'running');
CREATE UNIQUE INDEX one_restore_per_target ON operation_logs (target_resource_id)
    WHERE operation_type = 'restore' AND status IN ('waiting', 'running');
CREATE UNIQUE INDEX one_delete_per_backup ON operation_logs (backup_id)
    WHERE operation_type = 'delete' AND status IN ('waiting', 'running');
CREATE UNIQUE INDEX one_prune_per_vault ON operation_logs (vault_id)
    WHERE operation_type = 'prune' AND status IN ('waiting', 'running');

CREATE TABLE sessions (
    id           text PRIMARY KEY,
    project_id   text NOT NULL,
    vault_id     text NOT NULL,
    task_id      text REFERENCES operation_logs,     -- NULL: a download, ended by its process or its age
    kind         text NOT NULL,
    index_number bigint NOT NULL,
    opened_at    timestamptz NOT NULL
);
CREATE INDEX sessions_by_vault ON sessions (vault_id, index_number);

-- facts about this installation: name -> value (export_key_done, ...)
CREATE TABLE installation (
    name  text PRIMARY KEY,
    value text NOT NULL
);
