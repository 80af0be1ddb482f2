-- The audit log.

-- name: store_entry
-- The entry may be stored already, by the call itself or by an attempt whose answer was lost.
INSERT INTO audit_entries ({entry}) VALUES ({entry_values}) ON CONFLICT (id) DO NOTHING;

-- name: store_entries
-- Passes all values in one parameter. PostgreSQL converts them to the types of the columns.
INSERT INTO audit_entries ({entry})
SELECT {entry} FROM json_populate_recordset(NULL::audit_entries, %(entries)s)
ON CONFLICT (id) DO NOTHING;

-- part: page_of_entries
-- Checks the organization, because callers of other organizations may have named the workspace. The
-- subqueries are written so that PostgreSQL looks up each workspace by its id. Otherwise it might
-- build a hash table of all workspaces that the caller has created.
checked AS (
    SELECT *, org_id = %(org_id)s
        AND (%(task_id)s = '' OR task_id = %(task_id)s)
        AND (%(actor_id)s = '' OR actor_id = %(actor_id)s)
        AND (%(rpc)s = '' OR rpc = %(rpc)s)
        AND (%(outcome)s = '' OR outcome = %(outcome)s)
        AND (
            NOT %(own_only)s
            OR coalesce(
                (
                    SELECT org_id = %(org_id)s AND created_by_user_id = %(user_id)s
                    FROM workspaces WHERE id = newest.workspace_id
                ),
                (
                    SELECT org_id = %(org_id)s AND created_by_user_id = %(user_id)s
                    FROM deleted_workspaces WHERE id = newest.workspace_id
                )
            )
        ) AS matches
    FROM newest
)
{page}

-- name: list_of_org
-- Compares ids instead of times, because an id begins with the time of its entry.
WITH newest AS (
    SELECT {entry}, org_id AS scan_key, id AS scan_id FROM audit_entries
    WHERE org_id = ANY (ARRAY[%(org_id)s::text])
        AND id < %(before_id)s AND id < %(end_id)s AND id >= %(start_id)s
    ORDER BY org_id DESC, id DESC
    LIMIT {scanned}
), {page_of_entries};

-- name: list_of_workspace
WITH newest AS (
    SELECT {entry}, workspace_id AS scan_key, id AS scan_id FROM audit_entries
    WHERE workspace_id = ANY (ARRAY[%(workspace_id)s::text])
        AND id < %(before_id)s AND id < %(end_id)s AND id >= %(start_id)s
    ORDER BY workspace_id DESC, id DESC
    LIMIT {scanned}
), {page_of_entries};

-- name: list_partitions
SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'audit_entries'::regclass AND relname <> 'audit_entries_default'
ORDER BY relname;

-- name: prune_default_partition
DELETE FROM audit_entries_default WHERE id < %(first_id)s;

-- name: prune_deleted_workspaces
DELETE FROM deleted_workspaces WHERE deleted_at < %(before)s;
