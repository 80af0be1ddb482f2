"""Real agents: their time to start, their memory, and the time until a cancelled task ends."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

from bench.figures import Figures, Row, at_most, figure, percentile
from bench.plan import Block, Measure, Setting, Window
from bench.processes import private_bytes
from bench.side import Side
from evershell.client import Client, ClientClosedError, TaskCompleted, WorkspaceProvisioned
from tests.support.stack import Workspace
from tests.support.waiting import eventually

_START_SECONDS = 60.0
_MANY = 50
_TOOL = "sleep 0.1; date +%s.%N"


def blocks(quick: bool) -> list[Block]:
    """The blocks that need the fleet controller."""
    ends = 15 if quick else 100
    return [
        Block(
            name="start of an agent",
            windows=[Window("alone", _start(1)), Window("idle agent", _memory)],
            rows=[
                Row(
                    name="workspace from create to idle, alone",
                    unit="s",
                    value=figure("seconds", "alone"),
                    target=at_most(0.1),
                ),
                Row(
                    name="private memory of an idle agent",
                    unit="MB",
                    value=figure("megabytes", "idle agent"),
                    target=at_most(20),
                ),
            ],
            rounds=7,
            quick_rounds=3,
            needs_controller=True,
        ),
        Block(
            name="start of many agents",
            windows=[Window("many", _start(_MANY))],
            rows=[
                Row(
                    name=f"workspace from create to idle, {_MANY} at once",
                    unit="s",
                    value=figure("seconds", "many"),
                    target=at_most(2.5),
                )
            ],
            rounds=3,
            quick_rounds=0,
            needs_controller=True,
        ),
        Block(
            name="end of a cancelled task",
            windows=[Window("ends", _ends(ends))],
            rows=[
                _end_row("p50", "terminal event", "event", 3),
                _end_row("p99", "terminal event", "event", 7),
                _end_row("p50", "a watcher at the same worker sees it", "same"),
                _end_row("p99", "a watcher at the same worker sees it", "same"),
                _end_row("p50", "a watcher at another worker sees it", "other"),
                _end_row("p99", "a watcher at another worker sees it", "other"),
            ],
            rounds=2,
            quick_rounds=1,
            needs_controller=True,
        ),
    ]


def _end_row(percent: str, what: str, key: str, limit: float | None = None) -> Row:
    return Row(
        name=f"natural end of a cancelled iteration → {what}, {percent}",
        unit="ms",
        value=figure(f"{key} {percent}", "ends"),
        target=None if limit is None else at_most(limit),
    )


def _start(count: int) -> Measure:
    """Creates workspaces at the same time, waits until all are idle, and then stops them."""

    def measure(setting: Setting, side: Side) -> Figures:
        with (
            Client(side.address, side.stack.tokens["full_access"]) as client,
            ThreadPoolExecutor(count) as pool,
        ):
            began = time.perf_counter()
            created = list(pool.map(lambda _: _create(client), range(count)))
            taken = time.perf_counter() - began
            for workspace_id in created:
                client.stop_workspace(workspace_id)
            for workspace_id in created:
                eventually(lambda: _has_stopped(side, workspace_id), _START_SECONDS)
        return {"seconds": taken}

    return measure


def _create(client: Client) -> str:
    """Creates a workspace, and waits until it is idle."""
    workspace_id = client.create_workspace("bench").id
    for event in client.watch(workspace_id, timeout=_START_SECONDS):
        assert isinstance(event.payload, WorkspaceProvisioned), event
        return workspace_id
    raise AssertionError("the stream has ended")


def _has_stopped(side: Side, workspace_id: str) -> bool:
    query = "SELECT status = 'stopped' FROM workspaces WHERE id = %s"
    row = side.database.execute(query, (workspace_id,)).fetchone()
    return row is not None and bool(row[0])


def _memory(setting: Setting, side: Side) -> Figures:
    """The private memory of the demo workspace's agent while the agent is idle."""
    pid = side.stack.agent_pid(side.stack.ready["demo"]["workspace_id"])
    return {"megabytes": private_bytes(pid) / 2**20}


class _Arrivals:
    """Records when a watcher sees the end of each task. Runs in its own thread."""

    def __init__(self, address: str, token: str, workspace_id: str, after: int) -> None:
        self.seconds: dict[str, float] = {}
        self._client = Client(address, token)
        self._events = self._client.watch(workspace_id, after=after)
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        try:
            for event in self._events:
                if isinstance(event.payload, TaskCompleted):
                    assert event.task_id is not None
                    self.seconds[event.task_id] = time.time()
        except ClientClosedError:
            return

    def close(self) -> None:
        self._client.close()
        self._thread.join()


def _ends(count: int) -> Measure:
    """Cancels tasks of a real agent, and measures when watchers at two workers see each task end.

    The agent is connected to the first worker. The tool of each task prints the time of its end.
    """

    def measure(setting: Setting, side: Side) -> Figures:
        workspace = Workspace(side.stack)
        token = side.stack.tokens["full_access"]
        with side.second_worker(setting.folder / "second-worker.log") as (other, _):
            watchers = [
                _Arrivals(address, token, workspace.id, after=1)
                for address in (side.address, other)
            ]
            delays: dict[str, list[float]] = {"event": [], "same": [], "other": []}
            for _ in range(count):
                task_id = workspace.submit(*[_TOOL] * 5)
                workspace.await_phase(task_id, "tool_call")
                workspace.cancel()
                for watcher in watchers:
                    eventually(lambda: task_id in watcher.seconds)
                end, natural = _end(side, task_id)
                moments = (end, *(watcher.seconds[task_id] for watcher in watchers))
                for name, moment in zip(delays, moments, strict=True):
                    delays[name].append((moment - natural) * 1000)
            for watcher in watchers:
                watcher.close()
        workspace.rest.post(f"{workspace.path}/stop")
        return _percentiles(delays)

    return measure


def _end(side: Side, task_id: str) -> tuple[float, float]:
    """When the terminal event happened and when the tool ended, in seconds since 1970."""
    row = side.database.execute(
        "SELECT time, payload->>'status', payload->>'result' FROM events "
        "WHERE task_id = %s AND type = 'task_completed'",
        (task_id,),
    ).fetchone()
    assert row is not None
    moment, status, result = row
    assert status == "cancelled", status
    return moment.timestamp(), float(result)


def _percentiles(delays: dict[str, list[float]]) -> dict[str, float]:
    return {
        f"{name} p{percent}": percentile(values, percent)
        for name, values in delays.items()
        for percent in (50, 99)
    }
