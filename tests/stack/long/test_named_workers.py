"""Workers come and go behind a DNS name, while callers call and agents work."""

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.stack.long.named_workers import NamedWorkers
from tests.support.stack import Workspace
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("unshare") is None,
        reason="only root can give programs a DNS server of their own",
    ),
]

CALLERS = 4
# An agent ends if no heartbeat succeeds within this time, which is less than the 30 s for which
# gRPC keeps addresses by default.
LEASE_SECONDS = 20


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamedWorkers]:
    with ExitStack() as resources:
        folder = tmp_path_factory.mktemp("named")
        named = NamedWorkers(folder, resources, LEASE_SECONDS=str(LEASE_SECONDS))
        named.await_found(named.start_worker())
        named.end_first_worker()
        yield named
        assert named.stack.stop() == 0


class Caller:
    """Submits and cancels tasks in a separate workspace until it is stopped."""

    def __init__(self, workers: NamedWorkers) -> None:
        self.workspace = Workspace(workers.stack)
        self.agent = workers.stack.agent_pid(self.workspace.id)
        self._client = httpx.Client(
            base_url=workers.stack.ready["rest_url"],
            headers={"authorization": f"Bearer {workers.stack.tokens['full_access']}"},
            timeout=20,
        )
        self.calls = 0
        self.lost: list[str] = []

    def run(self, stopping: threading.Event) -> None:
        with self._client:
            while not stopping.is_set():
                self._call("POST", "/tasks", {"description": "true"})
                self._call("POST", "/task/cancel", {"wait": "5s"})
                # If the worker shuts down, it ends the wait early, while the task still runs.
                eventually(lambda: self._call("GET", "").get("status") != "busy")

    def _call(self, method: str, path: str, body: object = None) -> dict[str, object]:
        self.calls += 1
        try:
            response = self._client.request(method, self.workspace.path + path, json=body)
        except httpx.TransportError as error:
            self.lost.append(f"{method} {path}: {error!r}")
            return {}
        if not response.is_success:
            self.lost.append(f"{method} {path}: {response.status_code} {response.text}")
        found: dict[str, object] = response.json()
        return found


@contextmanager
def load(workers: NamedWorkers) -> Iterator[None]:
    """Makes calls during the block. None of the calls may fail, and no agent may end."""
    callers = [Caller(workers) for _ in range(CALLERS)]
    stopping = threading.Event()
    with ThreadPoolExecutor(CALLERS) as threads:
        calling = [threads.submit(caller.run, stopping) for caller in callers]
        try:
            yield
        finally:
            stopping.set()
            for each in calling:
                each.result()
    assert [lost for caller in callers for lost in caller.lost] == []
    assert min(caller.calls for caller in callers) > 0
    for caller in callers:
        caller.workspace.await_status("idle")
        assert workers.stack.agent_pid(caller.workspace.id) == caller.agent


def test_a_replacement_of_all_workers_loses_no_call(workers: NamedWorkers) -> None:
    while len(workers.running) < 2:
        workers.start_worker()
    with load(workers):
        for old in list(workers.running):
            new = workers.start_worker()
            workers.await_found(new)
            workers.end_worker(old)
    # None of the workers that the agents knew at their start is left.
    assert sum(workers.calls(address, "CommitEvents") for address in workers.running) > 0


def test_agents_leave_workers_that_are_frozen(workers: NamedWorkers) -> None:
    """The agents' connections to the frozen workers stay open, but get no answers."""
    new = workers.start_worker()
    workers.await_found(new)
    agents = "FROM workspaces WHERE status IN ('idle', 'busy')"
    with ExitStack() as resources:
        database = resources.enter_context(workers.stack.database())
        for address, process in workers.running.items():
            if address != new:
                resources.enter_context(workers.stack.frozen_process(process.pid))
        before = database.execute(f"SELECT count(*), now() {agents}".encode()).fetchone()
        assert before is not None

        def have_renewed() -> bool:
            query = f"SELECT count(*) {agents} AND lease_expires_at > %s + %s * interval '1 s'"
            count = database.execute(query.encode(), (before[1], LEASE_SECONDS)).fetchone()
            return count == (before[0],)

        # If an agent's lease ended, the count would never reach the old number again.
        eventually(have_renewed, 2 * LEASE_SECONDS)
