"""The pause before something is tried again."""

import pytest

from evershell.backoff import backoff


def test_the_pause_doubles_up_to_a_limit() -> None:
    pauses = [backoff(failures, first=0.5, longest=5.0, spread=0.0) for failures in range(7)]
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff(10_000, first=0.5, longest=5.0, spread=0.0) == 5.0


@pytest.mark.parametrize(("spread", "least"), [(1.0, 0.0), (0.5, 2.0)])
def test_a_share_of_the_pause_is_random(spread: float, least: float) -> None:
    pauses = {backoff(4, first=0.5, longest=5.0, spread=spread) for _ in range(100)}
    assert len(pauses) > 50
    assert least <= min(pauses) and max(pauses) <= 4.0
