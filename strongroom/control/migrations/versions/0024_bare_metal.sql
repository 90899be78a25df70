-- An agent's host is a native server or a bare metal server: the token says which, and counts for that alone.

ALTER TABLE agent_tokens ADD COLUMN resource_type text NOT NULL DEFAULT 'OS::Native::Server'
    CHECK (resource_type IN ('OS::Native::Server', 'OS::Ironic::BareMetalServer'));
