"""Compares every kind of cancellation on a real stack with an oracle.

The cells combine each state with each credential, task and wire.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import product

import pytest

from tests.stack.matrix import (
    MATRIX,
    PLACES,
    STATUSES,
    WIRES,
    Places,
    check_cells_that_change_nothing,
    check_cells_that_record,
    prepared_places,
)
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def places(stack: Stack) -> Iterator[Places]:
    with prepared_places(stack, PLACES) as prepared:
        yield prepared


def test_the_matrix_is_whole() -> None:
    assert len(set(MATRIX)) == len(MATRIX) == 1240
    assert Counter(cell.answer for cell in MATRIX) == {
        "unauthenticated": 310,
        "validation_error": 180,
        "permission_denied": 211,
        "workspace_not_found": 125,
        "task_not_found": 198,
        "workspace_provisioning": 6,
        "workspace_stopped": 21,
        "workspace_failed": 6,
        "already_finished": 99,
        "no_active_task": 14,
        "already_requested": 35,
        "accepted": 35,
    }
    # Every wire gets every answer, except those that require a call without a task id.
    never = {
        ("no_active_task", "path"),
        ("workspace_provisioning", "path"),
        ("workspace_failed", "path"),
    }
    assert {(cell.answer, cell.wire) for cell in MATRIX} == set(product(STATUSES, WIRES)) - never


@pytest.mark.soak
@pytest.mark.parametrize(("state", "creator"), PLACES)
def test_cells_that_change_nothing(stack: Stack, places: Places, state: str, creator: str) -> None:
    check_cells_that_change_nothing(stack, places, state, creator)


@pytest.mark.soak
@pytest.mark.parametrize("creator", ["owner", "member"])
def test_cells_that_record(stack: Stack, places: Places, creator: str) -> None:
    check_cells_that_record(stack, places, creator, at_most=len(MATRIX))
