"""How long the caller still waits bounds whatever waits for others on its behalf."""

import asyncio

import pytest

from server.core import deadline


async def test_without_a_limit_of_the_callers_the_own_one_holds() -> None:
    assert deadline.bounded(7) == 7


@pytest.mark.parametrize(
    ("left", "limit", "expected"),
    [(10, 7, 7), (2, 7, 1.75), (0.3, 7, 0.1), (-5, 7, 0.1), (-5, 0.05, 0.05)],
)
async def test_the_answer_arrives_within_the_callers_time(
    left: float, limit: float, expected: float
) -> None:
    deadline.begin(left)
    assert deadline.bounded(limit) == pytest.approx(expected, abs=0.05)


async def test_each_call_has_its_own() -> None:
    async def call(left: float | None) -> float:
        deadline.begin(left)
        await asyncio.sleep(0)
        return deadline.bounded(100)

    limits = await asyncio.gather(*(asyncio.create_task(call(left)) for left in (1, None, 50)))
    assert limits == [pytest.approx(0.75, abs=0.05), 100, pytest.approx(49.75, abs=0.05)]
