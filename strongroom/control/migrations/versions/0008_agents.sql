-- Agents: hosts that a tenant has named, and the paths it wants of them. A row says what was told to the API; whether
-- a program is there says last_active_at alone, which only a connection of the agent itself may write.

CREATE TABLE agents (
    id             text NOT NULL,                -- chosen by the client, so unique within its project only
    project_id     text NOT NULL REFERENCES projects,
    agent_type     text CHECK (agent_type IN ('cloud', 'native')),
    agent_version  text,
    host_name      text NOT NULL CHECK (length(host_name) BETWEEN 1 AND 255),
    host_nickname  text,
    host_ip        text NOT NULL,
    host_os        text NOT NULL,
    uninstalled_at timestamptz,
    last_active_at timestamptz,                  -- NULL: it has never connected
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz,
    PRIMARY KEY (project_id, id)
);
CREATE INDEX agents_by_project ON agents (project_id, created_at DESC, id DESC);

CREATE TABLE agent_paths (
    id         text PRIMARY KEY,
    project_id text NOT NULL,
    agent_id   text NOT NULL,
    path       text NOT NULL,                    -- absolute, of Unix or Windows, without a separator at its end
    excluded   text[] NOT NULL DEFAULT '{}',     -- paths below it
    created_at timestamptz NOT NULL,
    UNIQUE (project_id, agent_id, path),
    FOREIGN KEY (project_id, agent_id) REFERENCES agents (project_id, id) ON DELETE CASCADE
);
