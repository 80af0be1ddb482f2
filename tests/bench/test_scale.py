import json
from pathlib import Path

import pytest

from tests.bench import cluster_scale, scale, targets
from tests.bench.curves import PICTURES, Measured
from tests.bench.idle_fleet import WORKSPACES, summary
from tests.bench.rows import all_blocks

ENVIRONMENT = {
    "cores": 2,
    "python": "3.11.7",
    "grpcio": "1.85.3",
    "postgresql": "18.4",
    "commit": "0123456",
    "quick": False,
}
# Median, minimum and maximum by the name of the row.
SAMPLE: Measured = {
    "CancelTask over gRPC, 1 caller, throughput": (500, 480, 510),
    "CancelTask over gRPC, 16 callers, throughput": (1_000, 900, 1_200),
    "CPU of the worker for a CancelTask over gRPC, 16 callers": (800, 790, 850),
    "CPU of PostgreSQL for a CancelTask over gRPC, 16 callers": (400, 390, 420),
    "memory of the worker for an idle watcher": (16, 15, 17),
}


def write_bench(path: Path, measured: Measured) -> Path:
    rows = [
        {"name": name, "unit": "ms", "runs": 3, "median": median, "min": least, "max": most}
        for name, (median, least, most) in measured.items()
    ]
    path.write_text(json.dumps({"environment": ENVIRONMENT, "skipped": {}, "rows": rows}))
    return path


def section(content: str, title: str) -> str:
    return content.split(f"### {title}\n")[1].split("\n### ")[0]


def test_the_pages_show_the_rows_that_there_are() -> None:
    for page, text in scale.documents().items():
        assert page.read_text() == text, f"{page} is out of date: run `make scale`"


def test_the_page_explains_exactly_the_targets_that_are_missed() -> None:
    rows = json.loads(scale.BENCH_JSON.read_text())["rows"]
    assert targets.listed_as_missed() == {row["name"] for row in rows if row["holds"] is False}


def test_the_bench_measures_the_rows_of_the_committed_file() -> None:
    committed = {row["name"] for row in json.loads(scale.BENCH_JSON.read_text())["rows"]}
    assert committed <= {row.name for each in all_blocks(quick=False) for row in each.rows}


def test_every_point_is_a_row_that_the_bench_measures() -> None:
    rows = {row.name for each in all_blocks(quick=False) for row in each.rows}
    idle = {str(summary(count, [({}, {}, 0.0)])["name"]) for count in WORKSPACES}
    cluster = {
        row.format(count) for row in cluster_scale.ROWS for count in cluster_scale.WORKSPACES
    }
    for picture in PICTURES:
        assert set(picture.missing({})) <= rows | idle | cluster, picture.name


def test_rows_come_from_both_files_and_those_of_the_idle_fleet_win(tmp_path: Path) -> None:
    name = "control-plane CPU for an idle agent, 1,000 workspaces"
    bench = write_bench(tmp_path / "bench.json", {**SAMPLE, name: (0.5, 0.5, 0.5)})
    idle = tmp_path / "idle_fleet.jsonl"
    idle.write_text(json.dumps({"name": name, "median": 0.2, "min": 0.1, "max": 0.3}) + "\n")
    measured, environment = scale.read(bench, idle)
    assert environment == ENVIRONMENT
    assert measured == {**SAMPLE, name: (0.2, 0.1, 0.3)}


def test_files_that_are_absent_have_no_rows(tmp_path: Path) -> None:
    measured, environment = scale.read(tmp_path / "bench.json", tmp_path / "idle_fleet.jsonl")
    assert (measured, environment) == ({}, {})
    content = scale.block(measured, environment)
    assert content.startswith("`bench.json` is absent")
    assert ".svg" not in content


def test_a_cell_has_the_median_and_the_extremes() -> None:
    found = section(scale.block(SAMPLE, ENVIRONMENT), "Callers")
    assert "| throughput, calls/s | 500 (480 to 510) |  | 1,000 (900 to 1,200) |  |" in found


def test_cores_are_the_sum_of_worker_and_postgresql() -> None:
    found = section(scale.block(SAMPLE, ENVIRONMENT), "Callers")
    # (800 + 400) µs a call, 1,000 times a second.
    assert "| for 1,000 cancellations a second, cores |  |  | 1.2 |  |" in found


def test_a_picture_names_the_rows_that_it_lacks() -> None:
    content = scale.block(SAMPLE, ENVIRONMENT)
    callers = section(content, "Callers")
    assert "![Callers](scale/callers.svg)" in callers
    missing = callers.split("Not measured: ")[1]
    assert "CancelTask over gRPC, 4 callers, throughput" in missing
    assert "CancelTask over gRPC, 1 caller, throughput" not in missing


def test_a_single_point_is_in_the_table_and_not_drawn() -> None:
    found = section(scale.block(SAMPLE, ENVIRONMENT), "Watchers")
    assert ".svg" not in found
    assert "16 (15 to 17)" in found


def test_a_short_run_says_so() -> None:
    assert "a short run" in scale.block(SAMPLE, {**ENVIRONMENT, "quick": True})
    assert "a full run" in scale.block(SAMPLE, ENVIRONMENT)


def test_only_the_part_between_the_marks_is_replaced() -> None:
    document = scale.replaced(f"a\n{scale._BEGIN}old\n{scale._END}\nb\n", "new\n")
    assert document == f"a\n{scale._BEGIN}\nnew\n\n{scale._END}\nb\n"
    assert scale.replaced(document, "new\n") == document


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(scale.UnusableDocumentError):
        scale.replaced("no marks", "new")
