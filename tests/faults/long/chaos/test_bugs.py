"""If the code has a bug, a run of chaos reports how the answers to callers contradict each other.

No bug here violates a constraint of the database, which would only make the call fail. No bug lets
a task be submitted during a hold either: under faults, some releases get no answer, and each of
these may have taken effect late, which would explain such a submission.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.checkout import Edit, copied_checkout
from tests.support.stack import environment_of

_CORE = "server/evershell/core/"
_STORE = "server/evershell/store/"
_DECIDE = f"{_STORE}functions/cancellation_outcome.sql"
_RECORD = f"{_STORE}functions/record_cancellation.sql"
_NO_ORDER = "no order of the calls explains these answers"
_RUN = ("-m", "tests.faults.long.chaos", "--place", "machine", "--seconds", "40", "--seed", "40")
_LIMIT_SECONDS = 600

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2 * _LIMIT_SECONDS)]


class Bug(NamedTuple):
    """A bug, and the rule that the answers contradict because of it."""

    edit: Edit
    rule: str


BUGS = {
    "two calls are accepted": Bug(
        Edit(
            f"{_CORE}cancel_task.py",
            "return Outcome(recorded.outcome)",
            'return Outcome(recorded.outcome.replace("already_requested", "accepted"))',
        ),
        _NO_ORDER,
    ),
    "an accepted cancellation is not recorded": Bug(
        Edit(
            _RECORD,
            "IF outcome = 'accepted' THEN",
            "IF outcome = 'accepted' AND w.last_seq % 3 > 0 THEN",
        ),
        _NO_ORDER,
    ),
    "a task ends cancelled and nobody asked": Bug(
        Edit(
            f"{_CORE}task_lifecycle.py",
            "    elif status is TaskStatus.CANCELLED:\n        status = TaskStatus.FAILED\n",
            "    elif task.iterations == 2:\n        status = TaskStatus.CANCELLED\n",
        ),
        _NO_ORDER,
    ),
    "a named cancellation cancels the next task": Bug(
        Edit(
            _RECORD,
            "WHERE id = coalesce(p_request.task_id, w.current_task_id) AND",
            "WHERE id = coalesce(w.current_task_id, p_request.task_id) AND",
        ),
        _NO_ORDER,
    ),
    "no_active_task while a task runs": Bug(
        Edit(
            _DECIDE,
            "WHEN t.id IS NULL THEN 'no_active_task'",
            "WHEN t.id IS NULL OR (NOT p_names_task AND t.iterations = 1) THEN 'no_active_task'",
        ),
        _NO_ORDER,
    ),
    "already_finished while the task runs": Bug(
        Edit(
            _DECIDE,
            "WHEN t.status IN ('completed',",
            "WHEN t.iterations = 1 OR t.status IN ('completed',",
        ),
        _NO_ORDER,
    ),
    "a cancelled parent gets a child": Bug(
        Edit(
            f"{_CORE}task_tree.py",
            "if above.status.is_terminal or above.cancel",
            "if False and above.cancel",
        ),
        "was submitted as a child of",
    ),
    "a watcher misses an event": Bug(
        Edit(
            f"{_CORE}watch_events.py",
            "                    yield encoded[index]\n",
            "                    if (seq + index) % 50:\n"
            "                        yield encoded[index]\n",
        ),
        "a watcher that has",
    ),
    "a webhook misses an end": Bug(
        Edit(
            "server/evershell/features/webhooks/deliveries.sql",
            "    AND e.type = ANY (h.event_types)\n    AND (h.creator",
            "    AND e.type = ANY (h.event_types) AND e.seq % 20 <> 0\n    AND (h.creator",
        ),
        "gets every event of its types",
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_run_ends_with_the_contradiction(name: str, tmp_path: Path) -> None:
    bug = BUGS[name]
    run = _run(tmp_path, bug.edit)
    assert run.returncode == 1, run.stdout
    (violations,) = tmp_path.glob("chaos-*/violations")
    assert bug.rule in violations.read_text(), run.stdout


def test_without_a_bug_the_same_run_is_right(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert run.returncode == 0, run.stdout


def _run(folder: Path, *edits: Edit) -> "subprocess.CompletedProcess[str]":
    checkout = copied_checkout(folder / "checkout", *edits)
    return subprocess.run(
        [sys.executable, *_RUN],
        cwd=checkout,
        env={**os.environ, **environment_of(checkout), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_LIMIT_SECONDS,
    )
