"""The verdict about trees finds a descendant that was left behind (tests/support/promises.py)."""

import pytest

from tests.support.promises import History, TaskRecord, no_descendant_is_left_behind

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
