"""What must always be true of a tree of tasks."""

from tests.faults.mutations.mutants import Rule, rule

_CORE = "server/evershell/core/"
_STORE = "server/evershell/store/"
_CANCEL = f"{_STORE}functions/cancel_tree.sql"
_LOCK = f"{_STORE}functions/lock_tree.sql"
_CONTRACT = "tests/contracts/test_store_trees.py"
_UNIT = "tests/unit/core/test_task_tree.py"

TREES: tuple[Rule, ...] = (
    rule(
        "no child is left behind",
        _CONTRACT,
        (_CANCEL, "            PERFORM lock_tree(p_request.org_id, p_request.task_id);\n", ""),
        (
            f"{_STORE}transitions.py",
            "    await connection.execute(SQL.lock_tree, named, prepare=True)\n",
            "",
        ),
        (_LOCK, "hashtext(root_of(t))", "hashtext(t.id)"),
        (_CANCEL, "p_request.task_id = ANY (ancestor_ids)", "p_request.task_id = ancestor_ids[1]"),
        (
            _CANCEL,
            "('accepted', 'already_requested', 'already_finished')",
            "('accepted', 'already_requested')",
        ),
    ),
    rule(
        "a cancellation of the current task is about the one that is current under the locks",
        _CONTRACT,
        (_CANCEL, "EXIT WHEN named_id IS NOT NULL OR EXISTS (", "EXIT WHEN true OR EXISTS ("),
        (_CANCEL, "EXIT WHEN named_id IS NOT NULL OR EXISTS (", "EXIT WHEN EXISTS ("),
    ),
    rule(
        "chaos finds that a child is left behind",
        "tests/faults/long/chaos",
        (
            _CANCEL,
            "p_request.task_id = ANY (ancestor_ids)",
            "p_request.task_id = ANY (ancestor_ids[:cardinality(ancestor_ids) - 1])",
        ),
    ),
    rule(
        "a parent that has ended or is being cancelled gets no child",
        _UNIT,
        (f"{_CORE}task_tree.py", "if above.status.is_terminal or above.cancel", "if above.cancel"),
        (f"{_CORE}task_tree.py", "is_terminal or above.cancel is not None:", "is_terminal:"),
    ),
    rule(
        "a tree is within one organization, and is attached to by those who may cancel it",
        f"{_CONTRACT} {_UNIT}",
        (
            f"{_STORE}transitions.sql",
            "WHERE w.org_id = %(org_id)s AND t.id = %(task_id)s",
            "WHERE w.org_id <= %(org_id)s AND t.id = %(task_id)s",
        ),
        (
            f"{_CORE}task_tree.py",
            "    permission.check(parent.workspace, parent.workspace.id)\n",
            "",
        ),
    ),
    rule(
        "a descendant that the caller may not cancel refuses the whole call",
        _CONTRACT,
        (_CANCEL, "        IF FOUND THEN\n", "        IF false THEN\n"),
        (
            _CANCEL,
            "            outcome := 'permission_denied';\n",
            "            PERFORM record_cancellation(p_request, true);\n"
            "            outcome := 'permission_denied';\n",
        ),
    ),
    rule(
        "a tree is bounded",
        _UNIT,
        (f"{_CORE}task_tree.py", "if len(above.ancestor_ids) + 2 > MAX_LEVELS:", "if False:"),
        (f"{_CORE}task_tree.py", "if parent.open_descendants >=", "if parent.open_descendants >"),
    ),
    rule(
        "an agent reaches only children of its current task, and only the same creator",
        "tests/unit/core/test_children.py",
        (f"{_CORE}children.py", "if own.is_fenced(agent.epoch) or own", "if own"),
        (f"{_CORE}children.py", " or own.current_task_id != parent.id:", ":"),
        (
            f"{_CORE}children.py",
            "if workspace.created_by_user_id != by.own.created_by_user_id:",
            "if False:",
        ),
        (f"{_CORE}children.py", " or task.parent_id != by.parent_task_id:", ":"),
        (f"{_CORE}children.py", "(workspace_id, by.own.org_id)", "(workspace_id)"),
    ),
    rule(
        "a limit of a tree counts all its tasks, also after the end of the root",
        "tests/contracts/test_store_limits.py tests/unit/fleet/test_controller.py",
        (f"{_CORE}task_tree.py", "        in_limited_tree=above.in_limited_tree,\n", ""),
        (f"{_STORE}due.py", "int(row.tree_input_tokens)", "0"),
        (f"{_STORE}due.sql", "    has_uncancelled\n    OR", "    true\n    OR"),
        (
            "server/evershell/fleet/limits.py",
            "if root is None or reached is None:",
            "if root is None or reached is None or root.status.is_terminal:",
        ),
    ),
)
