"""Tests that a flood of bad credentials is refused and good callers still succeed."""

import pytest

from tests.stack.long.bad_credentials import KINDS, statuses_beside
from tests.support.stack import Stack


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_of_bad_credentials_is_refused_and_good_callers_go_on(
    stack: Stack, kind: str
) -> None:
    read, answered = statuses_beside(stack, kind, seconds=3)
    assert set(read) == {200}
    assert answered[401] > 0
    # Under load, the server refuses a token without verifying its signature.
    assert set(answered) <= {401, 429}
    if kind == "keys":
        assert set(answered) == {401}
