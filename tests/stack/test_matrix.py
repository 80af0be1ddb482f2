"""A part of the matrix of cancellations: a busy workspace with each credential, task and protocol.

tests/stack/long has the whole matrix.
"""

from collections.abc import Iterator

import pytest

from tests.stack.matrix import (
    Places,
    check_cells_that_change_nothing,
    check_cells_that_record,
    prepared_places,
)
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def places(stack: Stack) -> Iterator[Places]:
    with prepared_places(stack, [("idle", "owner"), ("busy", "owner")]) as prepared:
        yield prepared


def test_calls_without_an_effect_change_nothing(stack: Stack, places: Places) -> None:
    check_cells_that_change_nothing(stack, places, "busy", "owner")


def test_an_accepted_cancellation_is_recorded(stack: Stack, places: Places) -> None:
    check_cells_that_record(stack, places, "owner", at_most=3)
