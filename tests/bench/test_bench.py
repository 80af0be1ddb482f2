"""What the bench computes, and what it writes: rows, verdicts, parts of a profile, pages."""

import json

import pytest

from bench import flame, idle_fleet, report, scale, targets
from bench.curves import PICTURES, Measured
from bench.environment import Options
from bench.figures import (
    Row,
    Summary,
    Target,
    at_least,
    at_most,
    percentile,
    ratio,
    summarise,
)
from bench.rows import all_blocks

ENVIRONMENT = {
    "cores": 2,
    "python": "3.11.7",
    "grpcio": "1.85.3",
    "postgresql": "18.4",
    "commit": "0123456",
}


def test_a_percentile_is_the_value_of_the_nearest_rank() -> None:
    values = list(range(100, 0, -1))
    assert [percentile(values, each) for each in (0, 50, 99, 99.5, 100)] == [1, 50, 99, 100, 100]
    assert percentile([7], 50) == 7


def test_a_ratio_is_taken_within_each_round_so_drift_cancels_out() -> None:
    rounds = [
        {"cancel": {"p50": 2.0}, "floor": {"p50": 1.0}},
        {"cancel": {"p50": 40.0}, "floor": {"p50": 20.0}},
        # This round does not count, because the run ended before the round was complete.
        {"cancel": {"p50": 1.0}},
        {"cancel": {"p50": 9.0}, "floor": {"p50": 3.0}},
    ]
    value = ratio("p50", "cancel", "floor")
    (summary,) = summarise([Row(name="row", unit="×", value=value, target=at_most(2))], rounds)
    assert summary.values == [2, 2, 3]
    # The median of the ratios is 2. The ratio of the medians would be 3.
    assert summary.as_json() == {
        "name": "row",
        "unit": "×",
        "runs": 3,
        "median": 2,
        "min": 2,
        "max": 3,
        "target": "≤ 2",
        "holds": True,
    }


@pytest.mark.parametrize("quick", [False, True])
def test_every_row_has_its_windows_and_a_name_of_its_own(quick: bool) -> None:
    blocks = all_blocks(quick)
    for block in blocks:
        names = {window.name for window in block.windows}
        assert all(row.windows for row in block.rows), block.name
        assert names == set().union(*(row.windows for row in block.rows)), block.name
    names_of_rows = [row.name for block in blocks for row in block.rows]
    assert len(names_of_rows) == len(set(names_of_rows))


@pytest.mark.parametrize(
    ("target", "ratios", "expected"),
    [
        (at_most(1), [1.1, 1.3, 1.1, 1.1, 1.1], "better"),
        (at_most(1), [0.9, 0.8, 0.9, 0.9, 0.9], "worse"),
        (at_least(1), [1.1, 1.3, 1.1, 1.1, 1.1], "worse"),
        (at_most(1), [0.9, 1.3, 1.1, 1.1, 1.1], ""),
        (at_most(1), [1.1, 1.3, 1.1, 1.1], ""),
    ],
)
def test_a_commit_is_better_only_if_every_pair_says_so(
    target: Target, ratios: list[float], expected: str
) -> None:
    row = Row(name="row", unit="×", value=lambda _: 0, target=target)
    assert report.verdict(row, ratios) == expected


def test_a_target_that_is_missed_is_reported() -> None:
    rows = [
        Row(name=f"{target}", unit="×", value=lambda _: 0, target=target)
        for target in (at_most(1.2), at_least(1.2), at_least(1.21), None)
    ]
    assert report.missed([Summary(row, [1.2]) for row in rows]) == {"≥ 1.21"}


def test_the_options_come_from_the_environment() -> None:
    assert Options.read({}) == Options(False, "", None, None)
    options = Options.read({"QUICK": "1", "ROWS": "GetTask", "ROUNDS": "3"})
    assert options == Options(True, "gettask", 3, None)
    for wrong in ({"ROUNDS": "0"}, {"ROUNDS": "many"}, {"COMPARE": "/nonexistent"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options.read(wrong)


def test_the_pages_show_the_rows_that_there_are() -> None:
    for page, text in scale.documents().items():
        assert page.read_text() == text, f"{page} is out of date: run `make scale`"


def test_the_page_explains_exactly_the_targets_that_are_missed() -> None:
    rows = json.loads(scale.BENCH_JSON.read_text())["rows"]
    assert targets.listed_as_missed() == {row["name"] for row in rows if row["holds"] is False}


def test_the_bench_measures_the_rows_of_the_committed_file_and_of_the_pictures() -> None:
    rows = {row.name for each in all_blocks(quick=False) for row in each.rows}
    assert {row["name"] for row in json.loads(scale.BENCH_JSON.read_text())["rows"]} <= rows
    idle = {str(idle_fleet.summary(count, [({}, 0.0)])["name"]) for count in idle_fleet.WORKSPACES}
    for picture in PICTURES:
        assert set(picture.missing({})) <= rows | idle, picture.name


def test_a_page_has_what_was_measured_and_names_what_was_not() -> None:
    measured: Measured = {
        "CancelTask over gRPC, 16 callers, throughput": (1_000, 900, 1_200),
        "CPU of the worker for a CancelTask over gRPC, 16 callers": (800, 790, 850),
        "CPU of PostgreSQL for a CancelTask over gRPC, 16 callers": (400, 390, 420),
    }
    content = scale.block(measured, ENVIRONMENT)
    callers = content.split("### Callers\n")[1].split("\n### ")[0]
    assert "| throughput, calls/s |  |  | 1,000 (900 to 1,200) |  |" in callers
    # (800 + 400) µs a call, 1,000 times a second.
    assert "| for 1,000 cancellations a second, cores |  |  | 1.2 |  |" in callers
    assert "CancelTask over gRPC, 4 callers, throughput" in callers.split("Not measured: ")[1]
    # There is no picture, because a curve needs at least two points.
    assert ".svg" not in callers


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        ("run (asyncio/runners.py:118);Loop__run (loop.c:20313)", "event loop"),
        ("Loop__run (loop.c:2);0x7f01 (grpc/_cython/cygrpc.so);sendmsg (libc.so.6)", "gRPC engine"),
        # Counts as gRPC engine: the engine would read the request even without the interceptor.
        (
            "around (server/evershell/api/interceptors/errors.py:27);read (grpc/aio/_server.py:3)",
            "gRPC engine",
        ),
        ("begin (api/call.py:27);cancel_task (core/cancel_task.py:60)", "servicer and use case"),
        ("cancel_task (core/cancel_task.py:60);send (psycopg/cursor.py:9)", "database path"),
        ("cancel_task (core/cancel_task.py:6);_invoke (grpc/aio/_call.py:595)", "signal"),
        ("around (api/interceptors/request_log.py:4);encode (json/encoder.py:20)", "log line"),
        ("0x7f02 (libfoo-1.so.1)", "rest"),
    ],
)
def test_a_sample_belongs_to_the_innermost_part(frames: str, part: str) -> None:
    assert list(flame.parts([f"{frames} 1", f"{frames};epoll_wait (libc.so.6) 7"])) == [part]
