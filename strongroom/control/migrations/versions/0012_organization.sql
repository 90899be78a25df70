-- Organization policies: one of a domain, kept as a copy in every project that it is for.

CREATE TABLE organization_policies (
    id                   text PRIMARY KEY,
    domain_id            text NOT NULL REFERENCES domains,
    name                 text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    description          text CHECK (length(description) <= 255),
    effective_scope      text NOT NULL CHECK (length(effective_scope) BETWEEN 1 AND 255),   -- all, or ids of projects
    operation_type       text NOT NULL CHECK (operation_type IN ('backup', 'replication')),
    policy_name          text NOT NULL CHECK (length(policy_name) BETWEEN 1 AND 64),        -- of the copies
    enabled              boolean NOT NULL,
    patterns             text[] NOT NULL CHECK (cardinality(patterns) BETWEEN 1 AND 24),
    time_zone            text,
    start_window_minutes integer CHECK (start_window_minutes BETWEEN 60 AND 480),
    definition           jsonb NOT NULL,
    created_at           timestamptz NOT NULL,
    updated_at           timestamptz
);
CREATE INDEX organization_policies_by_domain ON organization_policies (domain_id, created_at DESC, id DESC);

ALTER TABLE policies
    ADD COLUMN organization_policy_id text REFERENCES organization_policies,    -- whose copy it is
    ADD COLUMN policy_type text NOT NULL DEFAULT 'custom_policy' CHECK (policy_type IN ('custom_policy',
        'organization_policy_v1', 'organization_policy_removed'));
ALTER TABLE policies ADD CONSTRAINT policies_copies_have_an_owner
    CHECK ((policy_type = 'organization_policy_v1') = (organization_policy_id IS NOT NULL));
CREATE UNIQUE INDEX one_copy_per_project ON policies (project_id, organization_policy_id)
    WHERE organization_policy_id IS NOT NULL;
