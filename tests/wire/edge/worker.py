"""Runs the stub in its own process, so that tests can freeze and terminate it.

The command is `python -m tests.wire.edge.worker`.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from tests.support.edge.stub import START_SECONDS, Stub, serving
from tests.support.stack import ROOT

# The grace period for calls, which is shorter than the time that the stub may take to stop.
GRACE_SECONDS = 14.0


@dataclass(frozen=True)
class Worker:
    """A running worker."""

    process: "subprocess.Popen[str]"
    address: str

    def release(self) -> None:
        """Lets the calls on the workspace `waits` end."""
        self.process.send_signal(signal.SIGUSR1)


@contextmanager
def worker() -> Iterator[Worker]:
    """Starts a worker, and kills it at the end even if it is frozen."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.wire.edge.worker"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
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
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    stub = Stub()
    # Uses a thread, because the main thread does not wait for signals while the stub stops.
    threading.Thread(target=_release_at_signal, args=(stub,), daemon=True).start()
    with serving(stub, grace_seconds=GRACE_SECONDS) as address:
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGTERM})


def _release_at_signal(stub: Stub) -> None:
    signal.sigwait({signal.SIGUSR1})
    stub.release.set()


if __name__ == "__main__":
    main()
