"""The stub as a process of its own, which can be frozen and asked to end: `python -m
tests.edge.worker`.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from server.stack.envoy.config import ROOT
from tests.support.edge.stub import START_SECONDS, Stub, serving

GRACE_SECONDS = 10.0
# Longer than it takes to notice a worker that is frozen.
SLOW_SECONDS = 4.5


@dataclass(frozen=True)
class Worker:
    """A running worker."""

    process: "subprocess.Popen[str]"
    address: str


@contextmanager
def worker() -> Iterator[Worker]:
    """Starts one and ends it, frozen or not."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.edge.worker"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    output: IO[str] | None = process.stdout
    assert output is not None
    try:
        yield Worker(process, output.readline().strip())
    finally:
        process.kill()
        process.wait(START_SECONDS)
        output.close()


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with serving(Stub(SLOW_SECONDS), grace_seconds=GRACE_SECONDS) as address:
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
