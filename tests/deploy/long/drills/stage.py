"""The stack on which the drills run, and the runbooks, whose commands the drills run."""

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from evershell.stack import postgres
from tests.deploy.long.drills.prometheus import Prometheus
from tests.stack.long.clocks import Clocks
from tests.support.documents import blocks
from tests.support.replication import Server
from tests.support.stack import ROOT, Stack
from tests.support.waiting import eventually

_PAGE = (ROOT / "docs" / "runbooks.md").read_text()
_SECTIONS = dict(
    zip(*[iter(re.split(r"^## (.*)\n", _PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True)
)
# The drills run without a cluster. So `kubectl` does nothing, and `logs` is the shell function that
# the page defines for a service on one machine.
_PRELUDE = "kubectl() { :; }\n" + next(
    each.text for each in blocks(_PAGE) if "cat .state/logs" in each.text
)
_LIMIT_SECONDS = 60


class Stage:
    """A stack with one worker, a database and clocks that the test controls, and its Prometheus."""

    def __init__(
        self, stack: Stack, database: Server, clocks: Clocks, prometheus: Prometheus
    ) -> None:
        self.stack = stack
        self.database = database
        self.clocks = clocks
        self.prometheus = prometheus

    def logs(self, program: str) -> str:
        """What a program has logged."""
        found = (self.stack.state_dir / "logs").glob(f"{program}*.log*")
        return "".join(path.read_text() for path in found)

    def assert_prints(self, alert: str, expected: str) -> None:
        """Waits until the runbook's commands print `expected`. Programs write logs with a delay."""
        try:
            eventually(lambda: re.search(expected, self._walk(alert)))
        except TimeoutError:
            raise AssertionError(f"{alert}: no {expected} in {self._walk(alert)}") from None

    def _walk(self, alert: str) -> str:
        """Runs the commands of the runbook, as they are on the page. Returns what they print."""
        commands = [
            each.text
            for each in blocks(_SECTIONS[alert])
            if each.language == "sh" and "a person decides" not in each.reason
        ]
        done = subprocess.run(
            ["/bin/bash", "-c", "\n".join([_PRELUDE, *commands])],
            # The commands read files in `.state`, so they run in the parent of the state folder.
            cwd=self.stack.state_dir.parent,
            env={
                **os.environ,
                "DATABASE_URL": self.stack.ready["database_url"],
                "STATE_DIR": str(self.stack.state_dir),
                "PATH": f"{postgres._installation() / 'bin'}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_SECONDS,
        )
        assert not done.stderr, done.stderr
        return done.stdout


@contextmanager
def repeated(call: Callable[[], object], pause_seconds: float = 0.0) -> Iterator[None]:
    """Repeats a call in a thread inside the block. Raises the error that the call has raised."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(pause_seconds):
            call()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield
        finally:
            done.set()
        running.result(_LIMIT_SECONDS)
