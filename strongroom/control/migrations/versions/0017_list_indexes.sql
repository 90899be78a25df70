-- Filters and orders of the list of backups, each by an index: a project with two million of them answers in
-- milliseconds where it read all of them for a second or more (docs/benchmarks/api.md). Orders by a time that may be
-- missing take it as the oldest: the expression is control/listing's. A part of a name is still searched row by row.

CREATE INDEX backups_of_resource ON backups (project_id, resource_id, created_at DESC, id DESC);
CREATE INDEX backups_by_name ON backups (project_id, name, id);
CREATE INDEX backups_by_status ON backups (project_id, status, id);
CREATE INDEX backups_by_update ON backups (project_id, coalesce(updated_at, 'epoch'), id);
CREATE INDEX backups_by_end ON backups (project_id, coalesce(protected_at, 'epoch'), id);
CREATE INDEX backups_of_parent ON backups (project_id, parent_id) WHERE parent_id IS NOT NULL;
-- Few different values each: in one index, where PostgreSQL 18 skips over those that are not asked for.
CREATE INDEX backups_by_kind ON backups (project_id, resource_type, image_type, incremental, enterprise_project_id);
