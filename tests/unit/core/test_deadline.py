"""The arrival of a call and its deadline bound every wait during the call."""

import asyncio
from types import SimpleNamespace

import pytest

from evershell.core import deadline


@pytest.fixture(autouse=True)
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: 100.0))


async def test_a_call_without_a_deadline_keeps_the_limit() -> None:
    assert deadline.bounded(7) == 7


@pytest.mark.parametrize(
    ("left", "limit", "expected"),
    [(10, 7, 7), (2, 7, 1.75), (0.3, 7, 0.1), (-5, 7, 0.1), (-5, 0.05, 0.05)],
)
async def test_the_limit_leaves_time_to_send_the_response(
    left: float, limit: float, expected: float
) -> None:
    deadline.begin(left)
    assert deadline.bounded(limit) == pytest.approx(expected)


async def test_each_call_has_its_own_deadline() -> None:
    async def call(left: float | None) -> float:
        deadline.begin(left)
        await asyncio.sleep(0)
        return deadline.bounded(100)

    limits = await asyncio.gather(*(asyncio.create_task(call(left)) for left in (1, None, 50)))
    assert limits == [0.75, 100, 49.75]


@pytest.mark.parametrize(
    ("waited", "passed", "left", "expected"),
    [
        (0, 0, None, 1.5),
        (0, 1, None, 0.5),
        (0, 1.4, None, 0.2),
        (0, 9, None, 0.2),
        (0, 1, 0.5, 0.25),
        (0.6, 0.4, None, 0.5),
        (0.6, 0.4, 0.5, 0.25),
        (9, 0, None, 0.2),
    ],
)
async def test_the_limit_of_a_call_is_counted_from_its_arrival(
    monkeypatch: pytest.MonkeyPatch,
    waited: float,
    passed: float,
    left: float | None,
    expected: float,
) -> None:
    assert deadline.left_of_call(1.5, 0.2) == 1.5
    deadline.begin(None if left is None else left + passed, waited)
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: 100.0 + passed))
    assert deadline.left_of_call(1.5, 0.2) == pytest.approx(expected)
