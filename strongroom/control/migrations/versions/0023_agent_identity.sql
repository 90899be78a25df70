-- Who may speak for a host (control/agent_identity.py). Rows of an agent go with it.

CREATE TABLE agent_authority (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    certificate bytea NOT NULL,                 -- DER
    sealed_key  bytea NOT NULL,                 -- by the master key, as other secrets
    created_at  timestamptz NOT NULL
);

CREATE TABLE agent_tokens (
    hash       bytea PRIMARY KEY,               -- SHA-256: the token itself is nowhere
    project_id text NOT NULL,
    agent_id   text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz,
    FOREIGN KEY (project_id, agent_id) REFERENCES agents (project_id, id) ON DELETE CASCADE
);
CREATE INDEX agent_tokens_by_agent ON agent_tokens (project_id, agent_id);

CREATE TABLE agent_certificates (
    serial     text PRIMARY KEY,                -- hex
    project_id text NOT NULL,
    agent_id   text NOT NULL,
    issued_at  timestamptz NOT NULL,
    not_after  timestamptz NOT NULL,
    revoked_at timestamptz,
    FOREIGN KEY (project_id, agent_id) REFERENCES agents (project_id, id) ON DELETE CASCADE
);
CREATE INDEX agent_certificates_by_agent ON agent_certificates (project_id, agent_id);
