"""Compares the answers of a real stack to every kind of cancellation with the answers of an oracle.

The cells of the matrix combine each state with each credential, task and way to call.
"""

from collections.abc import Iterator

import pytest

from tests.stack.matrix import (
    MATRIX,
    PLACES,
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


@pytest.mark.soak
@pytest.mark.parametrize(("state", "creator"), PLACES)
def test_cells_that_change_nothing(stack: Stack, places: Places, state: str, creator: str) -> None:
    check_cells_that_change_nothing(stack, places, state, creator)


@pytest.mark.soak
@pytest.mark.parametrize("creator", ["owner", "member"])
def test_cells_that_record(stack: Stack, places: Places, creator: str) -> None:
    check_cells_that_record(stack, places, creator, at_most=len(MATRIX))
