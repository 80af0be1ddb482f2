"""The alerts fire for a real stack: promtool evaluates them over what its programs have exported.

The stack is scraped about every half second. promtool reads that as a scrape every 15 s, and the
bound of a cancellation is smaller.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.alerts import Recorder, promtool, with_bound
from tests.support.metrics import Samples, scrape
from tests.support.ports import free_ports
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

WORKER, FLEET, EDGE = 0, 1, 2
NO_LABELS = frozenset[tuple[str, str]]()
OLDEST = ("evershell_cancellations_oldest_seconds", NO_LABELS)
HOLDS = ("evershell_orgs_on_hold", NO_LABELS)
OPEN_SECONDS = 20
BOUND = with_bound(10)
# An alert fires after 5 minutes in its state at the most, which are 20 scrapes.
SCRAPES = 40
SCRAPE_INTERVAL_SECONDS = 0.5
# Of a program that runs, and of one that is frozen.
SCRAPE_LIMIT_SECONDS, FROZEN_LIMIT_SECONDS = 20.0, 1.0


def programs(stack: Stack, *, is_fleet_frozen: bool = False) -> dict[str, Samples]:
    """What the programs export. A frozen one does not answer."""
    exported = {}
    for index in (WORKER, FLEET, EDGE):
        is_frozen = is_fleet_frozen and index == FLEET
        limit_seconds = FROZEN_LIMIT_SECONDS if is_frozen else SCRAPE_LIMIT_SECONDS
        with suppress(httpx.TimeoutException):
            exported[str(index)] = scrape(stack, index, limit_seconds)
    return exported


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The lease is so long that the fleet controller does not end the frozen agent."""
    promtool("--version")
    port = str(free_ports(3, in_a_row=3)[0])
    with Stack(
        tmp_path_factory.mktemp("alerts") / "state",
        METRICS_PORT=port,
        WORKERS="1",
        LEASE_SECONDS="600",
    ).started() as own:
        yield own


@pytest.mark.soak
def test_a_frozen_agent_an_open_cancellation_and_a_hold_fire_their_alerts(
    stack: Stack, tmp_path: Path
) -> None:
    workspace, recorder = Workspace(stack), Recorder()
    task_id = workspace.begin("sleep 600")
    recorder.add(programs(stack))
    recorder.add(programs(stack))
    recorder.assert_firing(tmp_path, set(), spec=BOUND)

    stack.rest("owner").post("/v1/hold", {"reason": "gone wrong"}, 200)
    count_holds_again(stack, 1)
    with stack.frozen_process(stack.agent_pid(workspace.id)):
        workspace.cancel(503)
        age, scrapes = 0.0, 0
        while age < OPEN_SECONDS or scrapes < SCRAPES:
            time.sleep(SCRAPE_INTERVAL_SECONDS)
            recorder.add(programs(stack))
            age, scrapes = scrape(stack, FLEET, SCRAPE_LIMIT_SECONDS)[OLDEST], scrapes + 1
        firing = {"AgentsUnreachable", "CancellationOverdue", "HoldInForce"}
        recorder.assert_firing(tmp_path, firing, spec=BOUND)

    stack.rest("owner").post("/v1/hold/release", status=200)
    workspace.rest.post(f"{workspace.path}/tasks/{task_id}/cancel", {"force_after": "0s"}, 202)
    assert workspace.await_end(task_id)["status"] == "cancelled"
    count_holds_again(stack, 0)
    eventually(lambda: scrape(stack, FLEET).get(OLDEST) == 0)
    after = Recorder()
    after.add(programs(stack))
    after.assert_firing(tmp_path, set(), spec=BOUND)


def count_holds_again(stack: Stack, expected: int) -> None:
    """Lets another controller lead, which counts the organizations on hold at its start.

    Each counts them again only after a minute.
    """
    (controller,) = stack.pids("fleet")
    stack.kill(controller)
    eventually(
        lambda: stack.pids("fleet") not in ([], [controller]) and _holds(stack) == expected, 40
    )


def _holds(stack: Stack) -> float | None:
    try:
        return scrape(stack, FLEET).get(HOLDS)
    except httpx.TransportError:
        # The next controller has not started yet.
        return None


@pytest.mark.soak
def test_a_frozen_fleet_controller_fires_its_alert(stack: Stack, tmp_path: Path) -> None:
    recorder = Recorder()
    with stack.frozen("fleet"):
        for _ in range(6):
            recorder.add(programs(stack, is_fleet_frozen=True))
        recorder.assert_firing(tmp_path, {"NoLeadingController"}, spec=BOUND)
