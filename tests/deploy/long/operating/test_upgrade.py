"""An upgrade from the last release to this checkout and back, under load: no call fails.

The programs, the agents and the clients of the two versions work with each other, in each
direction, on the schema of the later version. All calls are recorded and judged
(evershell.histories).
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from evershell.histories.judge import verdict
from evershell.histories.recorder import Recorder
from tests.stack.long.canceller import SHORT, Canceller
from tests.stack.long.load import GrpcCaller, Load, RestCaller
from tests.stack.long.recorded import Recorded
from tests.support.distribution import Environment, build_later, released
from tests.support.metrics import scrape
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Stack, Workspace
from tests.support.waiting import eventually

log = logging.getLogger(__name__)

# How long a step may take on a busy machine.
LIMIT_SECONDS = 60.0
# The pause of each caller between two calls.
PAUSE_SECONDS = 0.2
# The commands of a task that is cancelled with `wait`: 100 iterations.
WAITED = "\n".join(["sleep 1"] * 100)
# A client that submits, cancels and watches tasks until its input ends. Records its calls, and
# prints how many tasks have ended.
CLIENT = """
import pathlib, sys, threading
from evershell.client import Client, TaskStatus
from recorder import Recorder

address, key, workspace, history = sys.argv[1:]
here, recorder = {"workspace_id": workspace}, Recorder(pathlib.Path(history))
stopping, ended = threading.Event(), 0
threading.Thread(target=lambda: (sys.stdin.read(), stopping.set()), daemon=True).start()

def watch():
    stream = recorder.begin("client", "WatchEvents", here)
    for each in client.watch(workspace, after=0):
        event = {"seq": each.seq, "type": each.type, "task_id": each.task_id}
        if each.type == "task_completed":
            event["task_completed"] = {"status": each.payload.status}
        recorder.message(stream, {"event": event})
        yield each

def call(name, make, fields, **arguments):
    call_id = recorder.begin("client", name, here | arguments)
    answer = make()
    recorder.answer(call_id, here | {field: getattr(answer, field) for field in fields})
    return answer

with Client(address, key) as client:
    events = watch()
    while not stopping.wait(0.2):
        submit = lambda: client.submit_task(workspace, "sleep 0.1\\n" * 100)
        submitted = call("SubmitTask", submit, ["task_id"])
        ids = workspace, submitted.task_id
        cancel = lambda: client.cancel(*ids, wait=10)
        done = call("CancelTask", cancel, ["outcome", "task_id"], task_id=ids[1])
        wait = lambda: client.wait_for_task(*ids)
        task = call("GetTask", wait, ["id", "status"], task_id=ids[1])
        assert task.status == TaskStatus.CANCELLED, (done, task)
        seen = next(each for each in events if each.type == "task_completed")
        assert seen.task_id == submitted.task_id, (seen, submitted)
        ended += 1
print(ended)
"""


class Installed(Stack):
    """A stack that runs the programs of an installation."""

    def __init__(self, folder: Path, installation: Environment) -> None:
        ports = free_ports(5, in_a_row=5)
        # `up` is of version 0.1.0, in which the setting has this name.
        super().__init__(folder / "state", METRICS_PORT=str(ports[0]))
        self._metrics_port = ports[0]
        self._installation = installation

    @property
    def python(self) -> str:
        return str(self._installation.python)

    @property
    def metrics_port(self) -> int:
        return self._metrics_port

    def run(self, installation: Environment, command: str) -> None:
        """Runs a command of an installation, for this stack."""
        done = installation.run(
            *("evershell", command),
            cwd=self.state_dir.parent,
            STATE_DIR=str(self.state_dir),
        )
        assert done.returncode == 0, done.stderr

    def versions(self) -> list[str]:
        """The versions of the workers and of the controller."""
        samples = [scrape(self, index) for index in range(3)]
        labels = [dict(labels) for each in samples for name, labels in each if "build_info" in name]
        return [each["version"] for each in labels]

    def roll(self, installation: Environment) -> None:
        """Restarts the programs with another installation."""
        done = self.restarts()
        self.run(installation, "restart")
        eventually(lambda: self.restarts() > done, LIMIT_SECONDS)


@pytest.fixture(scope="module")
def installations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, Environment]:
    """The installations of the last release, and of this checkout as a later version."""
    folder = tmp_path_factory.mktemp("installations")
    new = Environment(folder / "new", build_later(folder), "local")
    return Environment(folder / "old", released(), "local", like=new), new


@contextmanager
def client(
    stack: Stack, installation: Environment, history: Path
) -> Iterator["subprocess.Popen[str]"]:
    """Runs a client of the installation. It must cancel some tasks within the block."""
    workspace, address = Workspace(stack), f"http://{stack.ready['grpc_addr']}"
    arguments = [address, stack.tokens["full_access"], workspace.id, str(history)]
    process = subprocess.Popen(
        [installation.python, "-c", CLIENT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The path is only for the recorder. All other modules come from the installation.
        env={**os.environ, "PYTHONPATH": str(ROOT / "client" / "evershell" / "histories")},
    )
    try:
        yield process
        output, problems = process.communicate(timeout=LIMIT_SECONDS)
        assert process.returncode == 0, problems
        assert int(output) > 1
    finally:
        process.kill()
        process.communicate()


def agents(stack: Stack) -> dict[str, str]:
    """Maps each workspace to the version of its agent, as the workers have logged it."""
    files = (stack.state_dir / "logs").glob("worker-*.log")
    lines = [line for path in files for line in path.read_text().splitlines()]
    entries = [json.loads(line) for line in lines if "agent_registered" in line]
    assert len(entries) == len({entry["workspace_id"] for entry in entries})
    return {entry["workspace_id"]: entry["version"] for entry in entries}


def has_new_column(stack: Stack) -> bool:
    with stack.database() as connection:
        query = "SELECT FROM pg_attribute WHERE attname = 'of_a_later_version'"
        return connection.execute(query).fetchone() is not None


def test_no_call_fails_during_an_upgrade_and_a_roll_back(
    tmp_path: Path, installations: tuple[Environment, Environment]
) -> None:
    (old, new), load, began = installations, Load(PAUSE_SECONDS), time.monotonic()
    of_old, of_new = (
        each.run("evershell", "--version", cwd=tmp_path).stdout.split()[-1] for each in (old, new)
    )
    cancellers: list[Canceller[Workspace]] = []

    def await_progress() -> None:
        """Waits until each caller has submitted and cancelled another task."""
        before = [each.ended for each in cancellers]

        def has_progressed() -> bool:
            assert load.outcomes.failures == [], "\n".join(load.outcomes.failures)
            return all(each.ended > 1 + n for each, n in zip(cancellers, before, strict=True))

        eventually(has_progressed, LIMIT_SECONDS)

    stack = Installed(tmp_path, old)
    files = [tmp_path / f"{name}.jsonl" for name in ("callers", "old client", "new client")]
    with (
        closing(Recorder(files[0])) as recorder,
        stack.started(),
        client(stack, old, files[1]),
        client(stack, new, files[2]),
    ):
        rest = Recorded("REST", RestCaller(stack), recorder)
        rpc = Recorded("gRPC", GrpcCaller(stack, token="submit_observe"), recorder)
        cancellers += [
            Canceller(load, "REST", rest, Workspace(stack), SHORT),
            Canceller(load, "gRPC, waits", rpc, Workspace(stack), WAITED, wait="10s"),
        ]
        streams = [
            Recorded("stream over REST", RestCaller(stack), recorder),
            Recorded("stream over gRPC", GrpcCaller(stack), recorder),
        ]
        for caller, canceller in zip(streams, cancellers, strict=True):
            load.watch("stream", caller, canceller.workspace)
        try:
            stack.run(new, "migrate")
            assert has_new_column(stack)
            await_progress()
            assert stack.versions() == [of_old] * 3
            stack.roll(new)
            assert stack.versions() == [of_new] * 3
            later = Workspace(stack)
            caller = Recorded("a later agent", GrpcCaller(stack), recorder)
            cancellers.append(Canceller(load, "a later agent", caller, later, SHORT))
            await_progress()
            stack.roll(old)
            assert stack.versions() == [of_old] * 3
            await_progress()
        finally:
            load.stop()
        log.info("%.0f s: %s", time.monotonic() - began, load.outcomes)
        assert load.outcomes.failures == [], "\n".join(load.outcomes.failures)
        for canceller in cancellers:
            canceller.assert_cancelled()
        versions = agents(stack)
        assert versions.pop(later.id) == of_new
        assert set(versions.values()) == {of_old}
    judged, contradictions = verdict(*files)
    log.info("%s", judged)
    assert contradictions == [], "\n".join(contradictions)
