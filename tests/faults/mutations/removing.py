"""What must be removed after its time, and what must stay."""

from tests.faults.mutations.mutants import Rule, rule

_REMOVE = "server/evershell/store/functions/remove_old_tasks.sql"
_FLEET = "server/evershell/fleet/"
_CONTRACT = "tests/contracts/test_store_retention.py"
_MACHINE = "tests/faults/invariants/test_invariants.py::test_trees_on_postgres"
_DELETE = "server/evershell/store/functions/remove_workspace.sql"
_CORE = "server/evershell/core/"
_STEPS = "server/evershell/fleet/steps.py"
_DELETIONS = (
    "tests/faults/invariants/test_invariants.py::test_invariants_hold_with_deletions_in_memory"
)
# A mutant in which the pod of a deleted workspace counts as ended at once.
_FORGETS_POD = (
    f"{_CORE}workspace.py",
    "return self.status is WorkspaceStatus.DELETING and self.run_id is None",
    "return self.status is WorkspaceStatus.DELETING",
)
_TREE_IS_OPEN = "AND is_open(d)"

REMOVING: tuple[Rule, ...] = (
    rule(
        "old tasks are removed with their events, and no others",
        _CONTRACT,
        (_REMOVE, "coalesce(t.completed_at >= p_before, true)", "t.completed_at >= p_before"),
        (_REMOVE, "coalesce(t.completed_at >= p_before, true)", "t.completed_at IS NULL"),
        (_REMOVE, "(task_id = '' AND time >= p_before)", "false"),
        (_REMOVE, "    DELETE FROM tasks WHERE id = ANY (old_ids);\n", ""),
    ),
    rule(
        "a task stays while its tree is open",
        f"{_CONTRACT} {_MACHINE}",
        (_REMOVE, _TREE_IS_OPEN, "AND false"),
        (_REMOVE, "WHERE root.id = t.ancestor_ids[1] AND root.completed_at IS NULL", "WHERE false"),
    ),
    rule(
        "random runs find a defect of the removal",
        _MACHINE,
        (_REMOVE, "AND seq < first_kept", "AND seq <= first_kept"),
        (_REMOVE, _TREE_IS_OPEN, "AND false"),
    ),
    rule(
        "chaos finds that tasks are removed too early",
        "tests/faults/long/chaos",
        (_REMOVE, "coalesce(t.completed_at >= p_before, true)", "t.completed_at IS NULL"),
    ),
    rule(
        "a task stays while an event of it is to be delivered",
        "tests/contracts/test_store_webhooks.py",
        (_REMOVE, "AND due_at IS NOT NULL", "AND false"),
        (_REMOVE, "        DELETE FROM webhooks WHERE task_id = ANY (old_ids);\n", ""),
    ),
    rule(
        "a stream from a removed event names the first one there is",
        "tests/unit/core/test_watch_events.py",
        (
            "server/evershell/core/watch_events.py",
            "if 0 < after_seq < first_seq - 1:",
            "if False:",
        ),
        (
            "server/evershell/core/watch_events.py",
            "                    seq = missed_seq\n",
            "                    pass\n",
        ),
    ),
    rule(
        "a deleted workspace is removed after its task, its pod and its files",
        "tests/unit/core/test_workspace_lifecycle.py tests/unit/fleet/test_controller.py",
        _FORGETS_POD,
        (_STEPS, "await self._pods.remove(workspace.id) and await", "await"),
        (
            f"{_CORE}workspace_lifecycle.py",
            "    if not begun.workspace.awaits_removal:\n",
            "    if True:\n",
        ),
    ),
    rule(
        "random runs find a defect of the deletion",
        _DELETIONS,
        _FORGETS_POD,
        (
            _STEPS,
            "if workspace.status in (WorkspaceStatus.STOPPING, WorkspaceStatus.DELETING):",
            "if workspace.status is WorkspaceStatus.STOPPING:",
        ),
    ),
    rule(
        "the rows of a deleted workspace are removed in bounded transactions, all of them",
        "tests/contracts/test_store_deletion.py",
        (_DELETE, "+ p_limit;", "+ 100 * p_limit;"),
        (_DELETE, "IF w.updated_at > p_waits_since AND (", "IF ("),
        (_DELETE, "IF w.updated_at > p_waits_since AND (", "IF false AND ("),
        (_DELETE, "AND e.position > (SELECT position", "AND e.position < (SELECT position"),
        (_DELETE, "    DELETE FROM webhooks WHERE task_id = ANY (task_ids);\n", ""),
    ),
    rule(
        "a stream of a deleted workspace ends with workspace_not_found",
        "tests/unit/core/test_watch_events.py",
        (
            f"{_CORE}watch_events.py",
            "if workspace is None or workspace.status is WorkspaceStatus.DELETING:",
            "if False:",
        ),
    ),
    rule(
        "the removal leaves most of the time to others, and ends with the term",
        "tests/unit/fleet/test_retention.py",
        (
            f"{_FLEET}periodic.py",
            "* (1 / _SHARE - 1)",
            "* 0",
        ),
        (
            f"{_FLEET}retention.py",
            "while not is_all and self._leads():",
            "while not is_all:",
        ),
    ),
)
