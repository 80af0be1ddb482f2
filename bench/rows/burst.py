"""CancelTask by a fresh worker, and by the same worker after a burst of other calls."""

from evershell.workspace.v1 import workspace_service_pb2

from bench import load, windows
from bench.figures import Figures, Row, at_most
from bench.http2 import message
from bench.plan import Block, Measure, Setting, Window
from bench.side import Side

_CREATED = 50
_CREATE_SECONDS = 60.0


def blocks(quick: bool) -> list[Block]:
    """One block."""
    return [
        Block(
            name="burst",
            windows=[Window("burst", _around_a_burst(1.0))],
            rows=[
                Row(
                    name=f"CancelTask over gRPC after {_CREATED} workspaces were created ÷ fresh, "
                    "1 caller, p50",
                    unit="×",
                    value=lambda figures: figures["burst"]["after"] / figures["burst"]["fresh"],
                    target=at_most(1.03),
                )
            ],
            rounds=5,
            quick_rounds=0,
        )
    ]


def _around_a_burst(seconds: float) -> Measure:
    """Uses a separate worker, because the pool of a worker keeps its connections after a burst."""

    def measure(setting: Setting, side: Side) -> Figures:
        with side.second_worker(setting.folder / "burst-worker.log") as (address, pid):

            def p50() -> float:
                connection = side.connect("CancelTask", address=address)
                agents = setting.agent_addresses
                return windows.cancelled(side, agents, [connection], 1, seconds, [pid])["p50"]

            fresh = p50()
            _create(side, address)
            return {"fresh": fresh, "after": p50()}

    return measure


def _create(side: Side, address: str) -> None:
    """Creates workspaces, all at the same time. The controller is a standby, so no agent starts."""
    request = workspace_service_pb2.CreateWorkspaceRequest(name="bench")
    connection = side.connect("CreateWorkspace", address=address)
    try:
        bodies = [message(request.SerializeToString())] * _CREATED
        calls = load.run([connection], bodies, _CREATED, _CREATE_SECONDS)
    finally:
        connection.close()
    windows.expect(calls, windows.OK)
