"""The comparison of two distributions."""

import random

import pytest

from tests.bench.denials import superiority


def test_the_same_distribution_shows_no_difference() -> None:
    chance = random.Random(1)
    first, second = ([chance.gauss(5, 1) for _ in range(2_000)] for _ in range(2))
    share, p = superiority(first, second)
    assert share == pytest.approx(0.5, abs=0.02)
    assert p > 0.05


def test_a_small_difference_shows_in_many_calls() -> None:
    chance = random.Random(1)
    first = [chance.gauss(5.1, 1) for _ in range(5_000)]
    second = [chance.gauss(5, 1) for _ in range(5_000)]
    share, p = superiority(first, second)
    assert share > 0.51
    assert p < 0.001


def test_all_larger_and_none_larger() -> None:
    assert superiority([2, 3], [0, 1])[0] == 1
    assert superiority([0, 1], [2, 3])[0] == 0
