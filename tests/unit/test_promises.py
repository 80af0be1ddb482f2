"""Verdicts of tests/support/promises.py about trees, and about the usage of iterations."""

import pytest

from tests.support.promises import (
    History,
    TaskRecord,
    each_iteration_counts_once,
    no_descendant_is_left_behind,
)

ANSWERED_AT = 10.0


@pytest.mark.parametrize(
    ("cancel_requested_at", "completed_at", "is_left_behind"),
    [
        (9.0, None, False),
        (None, 9.0, False),
        (None, None, True),
        # It ended, or another call cancelled it, after the answer.
        (None, 11.0, True),
        (11.0, 12.0, True),
    ],
)
def test_a_descendant_is_cancelled_or_has_ended_before_the_answer(
    cancel_requested_at: float | None, completed_at: float | None, *, is_left_behind: bool
) -> None:
    child = TaskRecord(
        id="child",
        workspace_id="ws",
        status="running",
        cancel_requested_at=cancel_requested_at,
        completed_at=completed_at,
        ancestor_ids=("root",),
    )
    history = History(tasks={"child": child}, promised_trees=[("root", "accepted", ANSWERED_AT)])
    assert bool(list(no_descendant_is_left_behind(history))) is is_left_behind
    other = History(tasks={"child": child}, promised_trees=[("other", "accepted", ANSWERED_AT)])
    assert not list(no_descendant_is_left_behind(other))


@pytest.mark.parametrize(
    ("model_calls", "is_lost", "is_open", "is_kept"),
    [
        (2, False, False, True),
        (3, True, False, True),
        # It was not reported.
        (2, True, False, True),
        (3, False, False, False),
        (4, True, False, False),
        (1, False, False, False),
        (2, False, True, False),
    ],
)
def test_a_lost_iteration_counts_once(
    model_calls: int, *, is_lost: bool, is_open: bool, is_kept: bool
) -> None:
    task = TaskRecord(
        id="t",
        workspace_id="ws",
        status="cancelled",
        iterations=2,
        model_calls=model_calls,
        iteration_lost=is_lost,
        has_open_iteration=is_open,
    )
    assert (list(each_iteration_counts_once(History(tasks={"t": task}))) == []) is is_kept
