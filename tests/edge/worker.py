"""Runs the stub in its own process, so that tests can freeze and terminate it.

The command is `python -m tests.edge.worker`.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from tests.support.edge.stub import START_SECONDS, Stub, serving
from tests.support.stack import ROOT

GRACE_SECONDS = 10.0
# Longer than Envoy takes to notice a frozen worker.
SLOW_SECONDS = 4.5


@dataclass(frozen=True)
class Worker:
    """A running worker."""

    process: "subprocess.Popen[str]"
    address: str


@contextmanager
def worker() -> Iterator[Worker]:
    """Starts a worker and kills it at the end, even a frozen one."""
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
