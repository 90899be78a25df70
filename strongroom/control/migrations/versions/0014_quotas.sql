-- What a project may have; NULL, or no row: as much as it wants. Counted from the rows themselves, under the project's lock.

CREATE TABLE project_quotas (
    project_id     text PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
    vaults         integer CHECK (vaults >= 0),
    bytes          bigint CHECK (bytes >= 0),            -- live sealed bytes of all vaults together
    restore_points integer CHECK (restore_points >= 0),  -- checkpoints that are not failed ones
    updated_at     timestamptz NOT NULL
);
