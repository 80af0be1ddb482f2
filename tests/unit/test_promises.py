"""The verdicts of tests/support/promises.py on the usage of iterations."""

import pytest

from tests.support.promises import (
    History,
    TaskRecord,
    each_iteration_counts_once,
)


@pytest.mark.parametrize(
    ("model_calls", "is_lost", "is_open", "is_kept"),
    [
        (2, False, False, True),
        (3, True, False, True),
        # The lost iteration was not reported.
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
