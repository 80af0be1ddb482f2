"""What is removed after its time, and what stays."""

from tests.faults.mutations.mutants import Rule, rule

_REMOVE = "server/evershell/store/functions/remove_old_tasks.sql"
_FLEET = "server/evershell/fleet/"
_CONTRACT = "tests/contracts/test_store_retention.py"
_MACHINE = "tests/faults/invariants/test_invariants.py::test_trees_on_postgres"
_TREE_IS_OPEN = "AND d.status IN ('submitted', 'delivered', 'running')"

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
        "a task is cancelled when the files of its workspace reach their limit",
        "tests/unit/fleet/test_file_limit.py",
        (f"{_FLEET}local/file_limit.py", "if size >= self._limit_bytes and", "if False and"),
        (f"{_FLEET}local/file_limit.py", "max(_MIN_BYTES, blocks * 512)", "blocks * 512"),
        (f"{_FLEET}local/file_limit.py", "is_dir(follow_symlinks=False)", "is_dir()"),
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
            "events[-1].seq if events else max(after_seq, last_seq)",
            "events[-1].seq if events else after_seq",
        ),
    ),
    rule(
        "the removal leaves most of the time to others, and ends with the term",
        "tests/unit/fleet/test_retention.py",
        (
            f"{_FLEET}retention.py",
            "* (1 / _SHARE - 1)",
            "* 0",
        ),
        (
            f"{_FLEET}retention.py",
            "while after_id is not None and self._leads():",
            "while after_id is not None:",
        ),
    ),
)
