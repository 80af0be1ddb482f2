import pytest

from tests.bench.figures import (
    Row,
    Summary,
    at_least,
    at_most,
    figure,
    paired_ratios,
    percentile,
    ratio,
    summarise,
)
from tests.bench.rows import all_blocks


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)]
)
def test_a_percentile_is_the_value_of_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7], 50) == percentile([7], 99) == 7


def test_a_ratio_is_taken_within_each_round_so_drift_cancels_out() -> None:
    rounds = [
        {"cancel": {"p50": 2.0}, "floor": {"p50": 1.0}},
        {"cancel": {"p50": 40.0}, "floor": {"p50": 20.0}},
        {"cancel": {"p50": 9.0}, "floor": {"p50": 3.0}},
    ]
    row = Row(name="cancel ÷ floor", unit="×", value=ratio("p50", "cancel", "floor"))
    (summary,) = summarise([row], rounds)
    assert summary.values == [2, 2, 3]
    # Not the ratio of the medians, which is 3.
    assert summary.median == 2


def test_a_round_without_a_window_of_the_row_is_left_out() -> None:
    row = Row(name="cancel", unit="ms", value=figure("p50", "cancel"))
    assert summarise([row], [{"floor": {"p50": 1.0}}]) == []
    (summary,) = summarise([row], [{}, {"cancel": {"p50": 3.0}}])
    assert summary.values == [3]


@pytest.mark.parametrize(
    ("target", "value", "holds"),
    [
        (at_most(1.2), 1.2, True),
        (at_most(1.2), 1.21, False),
        (at_least(0.75), 0.75, True),
        (at_least(0.75), 0.74, False),
    ],
)
def test_a_target_includes_its_limit(target: object, value: float, holds: bool) -> None:
    row = Row(name="row", unit="×", value=lambda _: value, target=target)  # type: ignore[arg-type]
    assert Summary(row, [value]).holds is holds


def test_a_row_without_a_target_neither_holds_nor_fails() -> None:
    assert Summary(Row(name="row", unit="ms", value=lambda _: 1), [1]).holds is None


def test_the_json_of_a_row_has_the_spread_of_its_runs() -> None:
    row = Row(name="row", unit="×", value=lambda _: 1, target=at_least(0.75))
    assert Summary(row, [0.5, 0.70004, 0.9]).as_json() == {
        "name": "row",
        "unit": "×",
        "runs": 3,
        "median": 0.7,
        "min": 0.5,
        "max": 0.9,
        "target": "≥ 0.75",
        "holds": False,
    }


def test_two_sides_are_compared_pair_by_pair() -> None:
    row = Row(name="row", unit="ms", value=lambda _: 1)
    assert paired_ratios(Summary(row, [2, 30, 5]), Summary(row, [1, 10])) == [2, 3]


def test_a_row_knows_the_windows_that_it_needs() -> None:
    row = Row(name="row", unit="×", value=ratio("p50", "cancel", "floor"))
    assert row.windows == {"cancel", "floor"}


@pytest.mark.parametrize("quick", [False, True])
def test_every_row_is_made_of_windows_of_its_block(quick: bool) -> None:
    for block in all_blocks(quick):
        names = {window.name for window in block.windows}
        assert all(row.windows and row.windows <= names for row in block.rows), block.name
        assert names == set().union(*(row.windows for row in block.rows)), block.name


def test_row_names_differ() -> None:
    names = [row.name for block in all_blocks(quick=False) for row in block.rows]
    assert len(names) == len(set(names))
