"""A program's log: it never raises an error, limits every field, and counts repeats."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from evershell.telemetry import logs
from evershell.telemetry.logs import Sampler, Sink
from tests.support.small_disk import fill, free, small_disk

Lines = Callable[[], list[dict[str, Any]]]
_LIMIT = 1_000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def written(capfd: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """Returns a function that reads the lines on standard error since its last call."""
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
        # The first lost line was written in part, so the report of the loss begins on a new line.
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
        logging.getLogger("library").error("%d", "no number")

    logs.configure("agent", "INFO", epoch=3)
    write(structlog.get_logger())
    with_structlog = written()
    # Removes the handler of `configure`, so that `configure_plain` itself must handle the logs of
    # libraries.
    logging.getLogger().handlers.clear()
    write(logs.configure_plain("agent", epoch=3))
    without = written()
    assert len(without) == 8
    for line in (*with_structlog, *without):
        if line["event"] != "log_line_unprintable":
            assert line.pop("timestamp").endswith("Z")
    assert without == with_structlog


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
    # The beginning and the end of a traceback are kept.
    assert second["exception"].startswith("Traceback (most recent call last)")
    assert second["exception"].endswith("yyy")
    assert len(second["exception"]) < 8 * _LIMIT + 50


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


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
    assert 2 <= len(written()) < 20


def test_repeats_are_left_out_and_counted() -> None:
    clock = Clock()
    sampler = Sampler(20, clock)
    assert [sampler.admit("unauthenticated") for _ in range(20)] == [{}] * 20
    assert {sampler.admit("unauthenticated") is None for _ in range(100)} == {True}
    # Each kind of line has its own rate limit.
    assert sampler.admit("rate_limited") == {}
    clock.now += 0.1
    assert sampler.admit("unauthenticated") == {"repeats_left_out": 100}
    assert sampler.admit("unauthenticated") == {}
    assert sampler.admit("unauthenticated") is None
    clock.now += 3600
    assert sampler.admit("unauthenticated") == {"repeats_left_out": 1}
    assert sum(sampler.admit("unauthenticated") is not None for _ in range(100)) == 19
