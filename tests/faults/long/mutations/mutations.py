"""The mutations: each breaks one promise for tasks that a batch, a hold or a limit cancels.

A mutation replaces text in a copy of the server. A test fails if the text is not there any more.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.support.checkout import Edit, changed_checkout


@dataclass(frozen=True, slots=True)
class Mutation:
    """Replaces texts in files of `server/evershell`."""

    edits: tuple[Edit, ...]
    # A part of the report about what was found.
    found: str

    def checkout(self, folder: Path) -> Path:
        """Makes a working copy with the mutation."""
        return changed_checkout(folder, *self.edits)


# A controller enforces only the durations that end in its own term.
_FORGETS_LIMITS = (
    (
        "fleet/limits.py",
        "        self._clock = clock\n",
        "        self._clock = clock\n        self._since = 0.0\n",
    ),
    (
        "fleet/limits.py",
        "        due = await",
        "        self._since = self._since or self._clock().timestamp()\n        due = await",
    ),
    (
        "fleet/limits.py",
        "lambda locked: task_lifecycle.apply_limits(locked, self._clock())",
        "lambda locked: task_lifecycle.apply_limits(\n"
        "                    locked if locked.task and locked.task.started_at\n"
        "                    and locked.task.started_at.timestamp()\n"
        "                    + (locked.task.limits.max_duration_seconds or 0) >= self._since\n"
        "                    else type(locked)(locked.workspace, None), self._clock()\n"
        "                )",
    ),
)

# Found by the machine of tests/faults/invariants, with a store in memory.
MACHINE = {
    "a lost task that has reached its limit ends without it": Mutation(
        (
            (
                "core/task_lifecycle.py",
                "    limited = apply_limits(locked, now)\n    task",
                "    limited = unchanged(locked)\n    task",
            ),
        ),
        "limits_decide_the_end",
    ),
    "a controller forgets the limits of before its term": Mutation(
        _FORGETS_LIMITS, "limits_are_recorded_in_time"
    ),
    "a batch drops force_after": Mutation(
        (
            (
                "core/cancel_tasks.py",
                "intent_of(caller, request.reason, request.force_after_seconds, origin, clock)",
                "intent_of(caller, request.reason, None, origin, clock)",
            ),
        ),
        "invariant_11_force_is_asked_for",
    ),
    "a submission does not read the hold": Mutation(
        (("core/tasks.py", "        locked.require_no_hold()\n", ""),), "submitted during a hold"
    ),
}

# Found by chaos.
CHAOS = {
    "a batch leaves out every other task": Mutation(
        (
            (
                "store/functions/cancel_tasks.sql",
                "            AND w.status IN ('idle', 'busy')\n",
                "            AND w.status IN ('idle', 'busy')\n"
                "            AND w.current_task_id !~ '[0-9A-F]$'\n",
            ),
        ),
        "was not cancelled by",
    ),
    "a worker keeps for a while that there is no hold": Mutation(
        (
            (
                "store/holds.py",
                "    await connection.execute(_SHARE_LOCK, (org_id,), prepare=True)\n",
                "    await connection.execute(_SHARE_LOCK, (org_id,), prepare=True)\n"
                "    import time\n\n"
                "    since = share.__dict__.setdefault(org_id, time.monotonic())\n"
                "    if since + 3 > time.monotonic():\n"
                '        return await connection.execute(_GET + " AND false", (org_id,))\n'
                "    del share.__dict__[org_id]\n",
            ),
        ),
        "during the hold",
    ),
    "a controller forgets the limits of before its term": Mutation(
        _FORGETS_LIMITS, "after its limit was reached"
    ),
}
