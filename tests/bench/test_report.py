import io
import json

import pytest
from rich.console import Console

from tests.bench import report
from tests.bench.environment import Options
from tests.bench.figures import Row, Summary, Target, at_least, at_most
from tests.bench.http1 import request
from tests.bench.http2 import message


def summary(name: str, values: list[float], target: Target | None, unit: str = "×") -> Summary:
    return Summary(Row(name=name, unit=unit, value=lambda _: 0, target=target), values)


LATENCY = summary("latency", [1.5], at_most(1.2))
THROUGHPUT = summary("throughput", [0.8], at_least(0.75))
ABSOLUTE = summary("absolute", [100.0], None, unit="ms")


def earlier(**medians: float) -> str:
    units = {"absolute": "ms"}
    rows = [
        {"name": name, "median": median, "unit": units.get(name, "×")}
        for name, median in medians.items()
    ]
    return json.dumps({"rows": rows})


def test_a_document_has_the_rows_the_environment_and_the_reasons() -> None:
    content = json.loads(report.document([LATENCY], {"cores": 2}, {"large database": "absent"}))
    assert content["environment"] == {"cores": 2}
    assert content["skipped"] == {"large database": "absent"}
    assert [row["name"] for row in content["rows"]] == ["latency"]


@pytest.mark.parametrize(
    ("before", "is_worse"), [(1.5, False), (1.31, False), (1.3, True), (3.0, False)]
)
def test_a_ratio_that_grew_beyond_the_tolerance_is_worse(before: float, is_worse: bool) -> None:
    changed = report.changes([LATENCY], earlier(latency=before))
    assert changed["latency"].is_worse is is_worse


@pytest.mark.parametrize(("before", "is_worse"), [(0.8, False), (0.92, False), (0.93, True)])
def test_a_throughput_is_worse_when_it_fell(before: float, is_worse: bool) -> None:
    changed = report.changes([THROUGHPUT], earlier(throughput=before))
    assert changed["throughput"].is_worse is is_worse


def test_absolute_figures_are_not_compared_with_another_run() -> None:
    assert report.changes([ABSOLUTE], earlier(absolute=1)) == {}


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"rows": [{}]}', "not json"])
def test_an_unreadable_earlier_document_is_no_comparison(content: str) -> None:
    assert report.changes([LATENCY], content) == {}


@pytest.mark.parametrize(
    ("target", "ratios", "expected"),
    [
        (at_most(1), [1.1, 1.3, 1.1, 1.1, 1.1], "better"),
        (at_most(1), [0.9, 0.8, 0.9, 0.9, 0.9], "worse"),
        (at_least(1), [1.1, 1.3, 1.1, 1.1, 1.1], "worse"),
        (at_least(1), [0.9, 0.8, 0.9, 0.9, 0.9], "better"),
        (at_most(1), [0.9, 1.3, 1.1, 1.1, 1.1], ""),
        (at_most(1), [1, 1.3, 1.1, 1.1, 1.1], ""),
        (at_most(1), [1.1, 1.3, 1.1, 1.1], ""),
    ],
)
def test_a_commit_is_better_only_if_every_pair_says_so(
    target: Target, ratios: list[float], expected: str
) -> None:
    assert report.verdict(summary("row", [], target).row, ratios) == expected


def printed(*summaries: Summary, **medians: float) -> str:
    console = Console(file=io.StringIO(), width=200)
    changed = report.changes(summaries, earlier(**medians))
    report.print_table(summaries, changed, {"peers": "absent"}, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_marks_what_fails_and_what_got_worse() -> None:
    text = printed(LATENCY, THROUGHPUT, ABSOLUTE, latency=1.1, throughput=0.8)
    latency, throughput = (
        next(line for line in text.splitlines() if name in line) for name in ("latency", "through")
    )
    assert "NO" in latency
    assert "1.1 WORSE" in latency
    assert "yes" in throughput
    assert "WORSE" not in throughput
    assert "1 of 2 targets hold." in text
    assert "left out: peers: absent" in text


def test_a_comparison_prints_before_after_and_their_ratio() -> None:
    console = Console(file=io.StringIO(), width=200)
    report.print_comparison(
        [summary("latency", [3.0, 30.0] + [9.0] * 3, at_most(1))],
        [summary("latency", [2.0, 10.0] + [4.5] * 3, at_most(1))],
        ("old", "new"),
        console,
    )
    assert isinstance(console.file, io.StringIO)
    line = next(line for line in console.file.getvalue().splitlines() if "latency" in line)
    for text in ("9", "4.5", "2", "1.5", "3", "better"):
        assert f" {text} " in line


def test_the_options_come_from_the_environment() -> None:
    assert Options.read({}) == Options(False, "", None, None, False)
    options = Options.read({"QUICK": "1", "ROWS": "GetTask", "ROUNDS": "3", "STRICT": "1"})
    assert options == Options(True, "gettask", 3, None, True)
    assert options.is_partial


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_a_number_of_rounds_that_is_none_is_refused(rounds: str) -> None:
    with pytest.raises(ValueError, match="ROUNDS"):
        Options.read({"ROUNDS": rounds})


def test_a_checkout_that_is_not_set_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"COMPARE.*make \.venv/\.ready"):
        Options.read({"COMPARE": "/nonexistent"})


def test_the_wire_formats() -> None:
    assert message(b"abc") == b"\0\0\0\0\3abc"
    assert request("host:1", "/path", {"authorization": "Bearer x"}) == (
        b"POST /path HTTP/1.1\r\nhost: host:1\r\ncontent-length: 0\r\n"
        b"authorization: Bearer x\r\n\r\n"
    )
