"""The log of a program: it never raises, bounds every field, and counts repeats."""

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest

from evershell.core import trace
from evershell.core.trace import TraceContext
from evershell.telemetry import logs
from evershell.telemetry.logs import Sampler, Sink
from evershell.telemetry.metrics import Metrics
from tests.support.small_disk import fill, free, small_disk

Lines = Callable[[], list[dict[str, Any]]]
_LIMIT = 1_000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def written(capfd: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """Returns the lines on standard error since its last call."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield lambda: [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def notice(count: int) -> str:
    return f"{count} lost"


def test_lines_that_cannot_be_written_are_counted_and_reported(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 16):
        path = tmp_path / "disk" / "log"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        sink = Sink(descriptor, notice)
        sink.info("first")
        fill(tmp_path / "disk")
        for _ in range(3):
            sink.info("x" * 5000)
        assert sink.lost_lines == 3
        free(tmp_path / "disk")
        sink.info("last")
        # The first of the three was written in part, so the next one begins on a new line.
        assert [line.strip("x") for line in path.read_text().splitlines()] == [
            "first",
            "",
            "3 lost",
            "last",
        ]
        sink.info("after")
        assert path.read_text().endswith("last\nafter\n")
        assert sink.lost_lines == 3
        os.close(descriptor)


def test_a_file_with_a_limit_keeps_its_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    sink = Sink(descriptor, notice, max_bytes=1000)
    for number in range(1000):
        sink.info(f"line {number}")
        assert path.stat().st_size < 1000 + len("line 999\n")
        lines = path.read_text().splitlines()
        assert lines == [f"line {each}" for each in range(number + 1 - len(lines), number + 1)]
        assert number < 50 or len(lines) > 50
    assert sink.lost_lines == 0
    os.close(descriptor)


def test_a_missing_or_slow_reader_only_loses_lines() -> None:
    closed_reader, closed = os.pipe()
    os.close(closed_reader)
    sink = Sink(closed, notice)
    sink.error("no reader")
    assert sink.lost_lines == 1
    os.close(closed)
    sink.error("a descriptor that is closed")
    assert sink.lost_lines == 2
    slow_reader, slow = os.pipe()
    os.set_blocking(slow, False)
    sink = Sink(slow, notice)
    for _ in range(200):
        sink.info("x" * 1000)
    assert 0 < sink.lost_lines < 200
    os.close(slow)
    os.close(slow_reader)


def test_a_line_has_the_fields_of_its_program(written: Lines) -> None:
    logs.configure("serve", "INFO", epoch=3)
    structlog.get_logger().info("pod_started", workspace_id="ws_1")
    structlog.get_logger().debug("too_fine")
    (line,) = written()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "program": "serve",
        "epoch": 3,
        "event": "pod_started",
        "level": "info",
        "workspace_id": "ws_1",
    }


def test_a_log_without_structlog_writes_the_same_lines(written: Lines) -> None:
    def write(log: logs.Log) -> None:
        log.info("pod_started", workspace_id="ws_1")
        log.warning("rpc_failed", code=7)
        log.error("x" * 5_000, value=_Unprintable())
        try:
            raise ValueError("why")
        except ValueError as error:
            log.exception("unexpected_error")
            log.error("task_crashed", exc_info=error)
        log.error("nothing_raised", exc_info=None)
        logging.getLogger("library").warning("%s too many", 3)

    logs.configure("agent", "INFO", epoch=3)
    write(structlog.get_logger())
    with_structlog = written()
    # The log of libraries has to be captured again.
    logging.getLogger().handlers.clear()
    write(logs.configure_plain("agent", epoch=3))
    without = written()
    assert len(without) == 7
    for line in (*with_structlog, *without):
        if line["event"] != "log_line_unprintable":
            assert line.pop("timestamp").endswith("Z")
    assert without == with_structlog


def test_a_line_within_a_trace_has_its_id(written: Lines) -> None:
    logs.configure("serve", "INFO")
    log = structlog.get_logger()
    with trace.within(TraceContext("a" * 32, "b" * 16)):
        log.info("inside")
        log.info("named", trace_id="of another")
    log.info("outside")
    inside, named, outside = written()
    assert (inside["trace_id"], named["trace_id"]) == ("a" * 32, "of another")
    assert "trace_id" not in outside


def test_every_field_is_truncated_at_a_bound(written: Lines) -> None:
    logs.configure("serve", "INFO")
    log = structlog.get_logger()
    log.info(
        "x" * 50_000,
        path="/" * 50_000,
        many=list(range(10_000)),
        short=["a"],
        number=7,
        absent=None,
    )
    try:
        raise ValueError("y" * 50_000)
    except ValueError:
        log.exception("unexpected_error")
    first, second = written()
    for field in ("event", "path", "many"):
        assert len(first[field]) < _LIMIT + 50, field
        assert "characters cut]" in first[field], field
    assert "[49000 characters cut]" in first["path"]
    assert (first["short"], first["number"], first["absent"]) == (["a"], 7, None)
    # A traceback keeps its start and its end.
    assert second["exception"].startswith("Traceback (most recent call last)")
    assert second["exception"].endswith("yyy")
    assert len(second["exception"]) < 8 * _LIMIT + 50


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "value",
    [_Unprintable(), {(1, 2): 3}, 10**5_000, "\ud800"],
    ids=["object", "key", "number", "text"],
)
def test_a_value_that_cannot_be_printed_does_not_raise(written: Lines, value: object) -> None:
    logs.configure("serve", "INFO")
    structlog.get_logger().info("odd", value=value)
    (line,) = written()
    assert line["event"] == "odd" or (line["event"], line["of"]) == ("log_line_unprintable", "odd")


def test_messages_of_libraries_are_logged_in_the_same_format(written: Lines) -> None:
    logs.configure("serve", "INFO")
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("Invalid encoding on %s", "x" * 50_000)
    library.error("%d", "no number")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    warning, error, deprecation = written()
    assert (warning["event"], warning["logger"], warning["level"]) == (
        "library_message",
        "some.library",
        "warning",
    )
    assert len(warning["message"]) < _LIMIT + 50
    assert (error["level"], error["message"]) == ("error", "%d")
    assert deprecation["logger"] == "py.warnings"


@pytest.mark.parametrize(
    "secret",
    [
        b"sk_kE-y_1",
        b"Bearer sk_kE-y_1",
        b"bearer kE-y_1.2.kE-y",
        b"Basic kE-y_1",
        b"eyJkE-y_1.kE-y.s",
    ],
)
def test_libraries_log_no_credential(written: Lines, secret: bytes) -> None:
    logs.configure("serve", "INFO")
    value = b"task_1 " + secret + b"\xffkE-y b"
    try:
        raise ValueError(value)
    except ValueError:
        logging.getLogger("some.library").exception("Invalid encoding on %s", value)
    (line,) = written()
    assert "kE-y" not in json.dumps(line)
    assert line["message"].startswith("Invalid encoding on b'task_1 ")
    assert line["message"].endswith("[redacted] b'")


def test_repeated_messages_of_a_library_are_limited(written: Lines) -> None:
    logs.configure("serve", "INFO")
    for _ in range(1_000):
        logging.getLogger("some.library").warning("again")
    assert 20 <= len(written()) < 100


def test_repeats_are_left_out_and_counted() -> None:
    clock = Clock()
    sampler = Sampler(20, clock)
    assert [sampler.admit("unauthenticated") for _ in range(20)] == [{}] * 20
    assert {sampler.admit("unauthenticated") is None for _ in range(100)} == {True}
    # Each kind has a rate of its own.
    assert sampler.admit("rate_limited") == {}
    clock.now += 0.1
    assert sampler.admit("unauthenticated") == {"repeats_left_out": 100}
    assert sampler.admit("unauthenticated") == {}
    assert sampler.admit("unauthenticated") is None
    clock.now += 3600
    assert sampler.admit("unauthenticated") == {"repeats_left_out": 1}
    assert sum(sampler.admit("unauthenticated") is not None for _ in range(100)) == 19


def test_lost_lines_are_a_metric() -> None:
    metrics, lost = Metrics(), [3]
    metrics.watch_log(lambda: lost[0])
    assert b"evershell_log_lines_lost_total 3.0" in generate_latest(metrics.registry)


def test_a_program_with_a_full_log_continues(tmp_path: Path) -> None:
    """The program also causes asyncio to report a failed task through the logging module."""
    program = """
import asyncio, structlog
from evershell.telemetry import logs
sink = logs.configure("serve", "INFO")
async def main():
    async def fails(): raise RuntimeError("lost")
    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    structlog.get_logger().info("x")
asyncio.run(main())
print(sink.lost_lines)
"""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stderr=full,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "2\n")
