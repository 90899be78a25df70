-- How long the lists of a project are: the `count` of an unfiltered list, without counting a million rows.
--
-- Every statement that makes or ends rows of a list adds one row here, in its own transaction: by how many the list
-- grew or shrank. The length is their sum, so it is right in every snapshot, whatever commits or rolls back beside it.
-- No row here is ever changed, so no transaction waits for another one here. Now and then one of them puts what it
-- sees of a list together into one row; rows that another one is putting together are left to it.

CREATE TABLE list_counts (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id text NOT NULL,
    list       text NOT NULL,
    n          bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX list_counts_by_list ON list_counts (project_id, list) INCLUDE (n);

-- One call in 32 folds, so a list has some 32 rows, and more than a thousand once in 10^14 statements.
CREATE FUNCTION add_to_list(its_project text, its_list text, by bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF by = 0 THEN
        RETURN;
    END IF;
    INSERT INTO list_counts (project_id, list, n) VALUES (its_project, its_list, by);
    IF random() < 1.0 / 32 THEN
        WITH taken AS MATERIALIZED (
            SELECT id FROM list_counts WHERE project_id = its_project AND list = its_list
            LIMIT 1000 FOR UPDATE SKIP LOCKED),
        gone AS (DELETE FROM list_counts WHERE id IN (SELECT id FROM taken) RETURNING n)
        INSERT INTO list_counts (project_id, list, n)
            SELECT its_project, its_list, sum(n) FROM gone HAVING count(*) > 0;
    END IF;
END $$;

-- One function a list, because each knows which rows its list shows when nobody filters. `touched` are the rows of the
-- statement, new ones or gone ones.

CREATE FUNCTION count_backups() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_list(project_id, 'backups', CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END)
        FROM touched WHERE parent_id IS NULL GROUP BY project_id;
    RETURN NULL;
END $$;
CREATE TRIGGER backups_counted_in AFTER INSERT ON backups
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION count_backups();
CREATE TRIGGER backups_counted_out AFTER DELETE ON backups
    REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION count_backups();

CREATE FUNCTION count_operation_logs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_list(project_id, 'operation_logs', CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END)
        FROM touched WHERE listed GROUP BY project_id;
    RETURN NULL;
END $$;
CREATE TRIGGER operation_logs_counted_in AFTER INSERT ON operation_logs
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION count_operation_logs();
CREATE TRIGGER operation_logs_counted_out AFTER DELETE ON operation_logs
    REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION count_operation_logs();

CREATE FUNCTION count_vaults() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_list(project_id, 'vaults', CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END)
        FROM touched GROUP BY project_id;
    RETURN NULL;
END $$;
CREATE TRIGGER vaults_counted_in AFTER INSERT ON vaults
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION count_vaults();
CREATE TRIGGER vaults_counted_out AFTER DELETE ON vaults
    REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION count_vaults();

CREATE FUNCTION count_protectables() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_list(project_id, 'protectables/' || type, CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END)
        FROM touched WHERE removed_at IS NULL GROUP BY project_id, type;
    RETURN NULL;
END $$;
CREATE TRIGGER protectables_counted_in AFTER INSERT ON protectables
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION count_protectables();
CREATE TRIGGER protectables_counted_out AFTER DELETE ON protectables
    REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION count_protectables();

-- Updates that move a row into a list or out of it, or to another project, are rare; all others pass these triggers by.

CREATE FUNCTION recount_backup() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_list(OLD.project_id, 'backups', -1) WHERE OLD.parent_id IS NULL;
    PERFORM add_to_list(NEW.project_id, 'backups', 1) WHERE NEW.parent_id IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER backups_recounted AFTER UPDATE OF project_id, parent_id ON backups FOR EACH ROW
    WHEN (OLD.project_id <> NEW.project_id OR (OLD.parent_id IS NULL) <> (NEW.parent_id IS NULL))
    EXECUTE FUNCTION recount_backup();

CREATE FUNCTION recount_operation_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_list(OLD.project_id, 'operation_logs', -1) WHERE OLD.listed;
    PERFORM add_to_list(NEW.project_id, 'operation_logs', 1) WHERE NEW.listed;
    RETURN NULL;
END $$;
CREATE TRIGGER operation_logs_recounted AFTER UPDATE OF project_id, listed ON operation_logs FOR EACH ROW
    WHEN (OLD.project_id <> NEW.project_id OR OLD.listed <> NEW.listed)
    EXECUTE FUNCTION recount_operation_log();

CREATE FUNCTION recount_vault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_list(OLD.project_id, 'vaults', -1);
    PERFORM add_to_list(NEW.project_id, 'vaults', 1);
    RETURN NULL;
END $$;
CREATE TRIGGER vaults_recounted AFTER UPDATE OF project_id ON vaults FOR EACH ROW
    WHEN (OLD.project_id <> NEW.project_id) EXECUTE FUNCTION recount_vault();

CREATE FUNCTION recount_protectable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_list(OLD.project_id, 'protectables/' || OLD.type, -1) WHERE OLD.removed_at IS NULL;
    PERFORM add_to_list(NEW.project_id, 'protectables/' || NEW.type, 1) WHERE NEW.removed_at IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER protectables_recounted AFTER UPDATE OF project_id, type, removed_at ON protectables FOR EACH ROW
    WHEN (OLD.project_id <> NEW.project_id OR OLD.type <> NEW.type
          OR (OLD.removed_at IS NULL) <> (NEW.removed_at IS NULL))
    EXECUTE FUNCTION recount_protectable();

-- What is there already. The tables are locked by their new triggers until this revision commits.
INSERT INTO list_counts (project_id, list, n)
    SELECT project_id, 'backups', count(*) FROM backups WHERE parent_id IS NULL GROUP BY project_id
    UNION ALL SELECT project_id, 'operation_logs', count(*) FROM operation_logs WHERE listed GROUP BY project_id
    UNION ALL SELECT project_id, 'vaults', count(*) FROM vaults GROUP BY project_id
    UNION ALL SELECT project_id, 'protectables/' || type, count(*) FROM protectables WHERE removed_at IS NULL
        GROUP BY project_id, type;

-- backup_count of a resource is read with every restore point and vault: from the index alone, hence all its columns.
DROP INDEX backups_by_resource;
CREATE INDEX backups_by_resource ON backups (vault_id, resource_id, created_at DESC) INCLUDE (status, project_id);
