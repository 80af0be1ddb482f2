-- Workspaces, and one task with its workspace.

-- name: get_workspace
-- If `org_id` is NULL, the workspace may belong to any organization.
SELECT {workspace} FROM workspaces
WHERE id = %(workspace_id)s AND org_id = coalesce(%(org_id)s, org_id);

-- name: list_workspaces
WITH newest AS (
    SELECT {workspace}, org_id AS scan_key, id AS scan_id FROM workspaces
    WHERE org_id = ANY (ARRAY[%(org_id)s::text]) AND id < %(before_id)s
    ORDER BY org_id DESC, id DESC
    LIMIT {scanned}
), checked AS (SELECT *, true AS matches FROM newest)
{page};

-- name: list_own_workspaces
-- Uses the index workspaces_of_creator.
WITH newest AS (
    SELECT {workspace}, org_id AS scan_key, id AS scan_id FROM workspaces
    WHERE org_id = ANY (ARRAY[%(org_id)s::text]) AND id < %(before_id)s
        AND created_by_user_id = %(user_id)s
    ORDER BY org_id DESC, id DESC
    LIMIT {scanned}
), checked AS (SELECT *, true AS matches FROM newest)
{page};

-- name: list_named_workspaces
WITH newest AS (
    SELECT {w.workspace}, w.org_id AS scan_key, w.id AS scan_id FROM {named_workspaces}
    WHERE w.org_id = %(org_id)s AND w.id < %(before_id)s
        AND (NOT %(own_only)s OR w.created_by_user_id = %(user_id)s)
), checked AS (SELECT *, true AS matches FROM newest)
{page};

-- name: match_failed
-- Uses the index workspaces_failed. The count includes the workspaces beyond the limit. A filter that
-- is NULL matches every workspace.
SELECT id, count(*) OVER () AS matched FROM workspaces
WHERE org_id = %(org_id)s AND status = 'failed'
    AND (NOT %(own_only)s OR created_by_user_id = %(user_id)s)
    AND (%(workspace_ids)s::text[] IS NULL OR id = ANY (%(workspace_ids)s))
    AND (%(created_by_user_id)s::text IS NULL OR created_by_user_id = %(created_by_user_id)s)
ORDER BY id
LIMIT %(limit)s;

-- name: add_card
INSERT INTO agent_cards (workspace_id, description, skills, is_public)
VALUES (%(workspace_id)s, %(description)s, %(skills)s, %(is_public)s);

-- name: get_card
-- A workspace without a row in agent_cards has an empty card.
SELECT {w.workspace}, c.description AS card_description, c.skills AS card_skills,
    c.is_public AS card_is_public
FROM workspaces w LEFT JOIN agent_cards c ON c.workspace_id = w.id
WHERE w.id = %(workspace_id)s AND org_id = coalesce(%(org_id)s, org_id);

-- name: get_task
SELECT {task} FROM tasks WHERE id = %(task_id)s AND workspace_id = %(workspace_id)s;

-- name: get_workspace_with_task
SELECT {w.workspace}, {t.task}
FROM workspaces w LEFT JOIN tasks t ON t.id = %(task_id)s AND t.workspace_id = w.id
WHERE w.id = %(workspace_id)s AND org_id = coalesce(%(org_id)s, org_id);
