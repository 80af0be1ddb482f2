"""What must always be true of a workspace that is suspended or woken."""

from tests.faults.mutations.mutants import Rule, rule

_CORE = "server/evershell/core/"
_FLEET = "server/evershell/fleet/"
_STORE = "server/evershell/store/"
_UNIT = "tests/unit/core/test_suspension.py"
_MACHINE = "tests/faults/invariants/test_invariants.py"

SUSPENDING: tuple[Rule, ...] = (
    rule(
        "only a workspace that has been idle for long is suspended",
        f"{_UNIT} tests/unit/fleet/test_suspension.py",
        (f"{_CORE}workspace_lifecycle.py", "or workspace.updated_at > idle_since", ""),
        (f"{_FLEET}steps.py", "            and self._clock() >= workspace.updated_at", ""),
    ),
    rule(
        "a forced end suspends the workspace, even if it is interrupted",
        "tests/unit/core/test_workspace_lifecycle.py tests/unit/fleet/test_controller.py",
        (
            f"{_CORE}workspace_lifecycle.py",
            "workspace.agent_breach is None and _is_force_over(overdue or locked.task, now)",
            "False",
        ),
        (
            f"{_CORE}workspace_lifecycle.py",
            "workspace.agent_breach is None and _is_force_over",
            "_is_force_over",
        ),
        (f"{_CORE}workspace_lifecycle.py", "force_at + FORCE_MARGIN < now", "force_at < now"),
        (f"{_CORE}workspace_lifecycle.py", "overdue or locked.task", "locked.task"),
    ),
    rule(
        "the agent of a suspended workspace is fenced",
        _UNIT,
        (
            f"{_CORE}workspace.py",
            "        WorkspaceStatus.STOPPING,\n    }\n)",
            "        WorkspaceStatus.STOPPING,\n        WorkspaceStatus.SUSPENDED,\n    }\n)",
        ),
    ),
    rule(
        "the pod of a suspended workspace ends, even if a controller ends in between",
        f"{_UNIT} tests/contracts/test_store_leases.py",
        (
            f"{_STORE}due.sql",
            "status = 'suspended' AND run_id IS NOT NULL\n",
            "false\n",
        ),
        (
            f"{_CORE}workspace_lifecycle.py",
            "    return Change(replace(suspended, run_id=workspace.run_id), locked.task)",
            "    return Change(suspended, locked.task)",
        ),
    ),
    rule(
        "the task that wakes a workspace can be cancelled at once",
        f"{_UNIT} {_MACHINE} tests/contracts/test_store_cancellations.py",
        (
            f"{_STORE}functions/cancellation_outcome.sql",
            "'provisioning' AND t.id IS NULL THEN",
            "'provisioning' THEN",
        ),
        (
            f"{_CORE}cancel_task.py",
            "    if workspace.is_waking:\n",
            "    if False:\n",
        ),
    ),
    rule(
        "the task that wakes a workspace is delivered",
        _UNIT,
        (
            f"{_CORE}workspace_lifecycle.py",
            "WorkspaceStatus.IDLE if locked.task is None else WorkspaceStatus.BUSY",
            "WorkspaceStatus.IDLE",
        ),
        (
            f"{_CORE}task_lifecycle.py",
            "    given = replace(workspace, current_task_id=task.id, task_unnamed_since=None)\n",
            "    given = replace(workspace, task_unnamed_since=None)\n",
        ),
    ),
    rule(
        "a wake that fails ends the task exactly",
        _UNIT,
        (
            f"{_CORE}task_lifecycle.py",
            "TaskStatus.DELIVERY_FAILED if was_waking else TaskStatus.FAILED",
            "TaskStatus.FAILED",
        ),
        (
            f"{_CORE}task_lifecycle.py",
            "if not locked.workspace.is_waking or task is None or task.cancel is None:",
            "if task is None or task.cancel is None:",
        ),
    ),
)
