"""No callback occupies the event loop of a worker for long, under any load.

A slow callback uses ten times the processor time of the longest usual one: it does the work of many
calls, or work that grows with the data.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bench import processes
from tests.bench.long.mixed_load import MixedLoad
from tests.bench.side import Side


@pytest.fixture
def side() -> Iterator[Side]:
    running = Side("after")
    try:
        running.start()
        running.take_leadership()
        yield running
    finally:
        running.stop()


@contextmanager
def worker(side: Side, folder: Path) -> Iterator[tuple[str, int]]:
    """Runs a worker that reports its slow callbacks. Yields its address and process id."""
    port = processes.free_port()
    with processes.running(
        "tests.bench.long.watched_program",
        port,
        "serve",
        str(folder / "report"),
        log=folder / "log",
        environment={
            "STATE_DIR": str(side.stack.state_dir),
            "DATABASE_URL": side.stack.ready["database_url"],
            "RATE_LIMIT": "off",
        },
    ) as process:
        yield f"127.0.0.1:{port}", process.pid


@pytest.mark.soak
def test_no_callback_is_slow_under_load(side: Side, tmp_path: Path) -> None:
    began: dict[str, float] = {}
    agent_port = processes.free_port()
    agent_address = f"127.0.0.1:{agent_port}"
    with (
        processes.running("tests.bench.servers.agent", agent_port, log=tmp_path / "agent.log"),
        worker(side, tmp_path) as (address, pid),
    ):
        load = MixedLoad(side, address, pid, agent_address)
        began["start"] = time.monotonic()
        with load.heartbeats():
            for name, part in load.parts().items():
                began[name] = time.monotonic()
                part()
    slow = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    under_load = [each for each in slow if each["ended"] > began["start"]]
    assert not under_load, "\n\n".join(described(each, began) for each in under_load)


def part_of(slow: dict[str, Any], began: dict[str, float]) -> str:
    """The part of the load that ran when the slow callback ended."""
    return [name for name, at in began.items() if at < slow["ended"]][-1]


def described(slow: dict[str, Any], began: dict[str, float]) -> str:
    """A slow callback, the part of the load that ran then, and where it was slow."""
    return (
        f"{part_of(slow, began)}: {slow['seconds']} s of processor time, "
        f"{slow['collector_seconds']} s of it in the garbage collector\n"
        f"{slow['callback']}\n{''.join(slow['stack'][-12:])}"
    )
