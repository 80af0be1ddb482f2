"""What people would build instead, compared with the service: throughput and p99.

Each side is called over the protocol that a program would use for it. FastAPI and the service are
both called over REST, the service through Envoy. The server of a2a-sdk is called over JSON-RPC, and
the service over gRPC, directly at the worker.
"""

from collections.abc import Sequence

from bench import windows
from bench.figures import Figures, Row, Target, at_least, at_most, ratio
from bench.peers.a2a_peer import A2aPeer
from bench.peers.agent import Agent
from bench.peers.fastapi_peer import FastApiPeer
from bench.peers.peer import Peer
from bench.plan import Block, Measure, Setting, Window
from bench.side import Side

_SECONDS = 1.5
_OK, _ACCEPTED = 200, 202
# Each comparison: its name, the window of the service, and the window of the peer.
_FASTAPI = (
    "CancelTask over REST through Envoy ÷ FastAPI, SQLAlchemy, httpx over REST",
    "rest",
    "fastapi",
)
_A2A = (
    "CancelTask over gRPC ÷ a2a-sdk with its database over JSON-RPC, its agent over gRPC",
    "cancel",
    "a2a",
)


def blocks(quick: bool) -> list[Block]:
    """One block. Each window of a peer begins with enough running tasks for its duration."""
    fastapi, a2a = FastApiPeer(), A2aPeer()
    running = _Running((fastapi, a2a))
    measured = []
    for callers in (16, 64):
        measured += [
            Window(f"cancel {callers}", windows.cancel(callers, _SECONDS)),
            Window(f"rest {callers}", windows.cancel_rest(callers, _SECONDS)),
            Window(f"fastapi {callers}", running.cancel(fastapi, callers, 1_500, _ACCEPTED), True),
            Window(f"a2a {callers}", running.cancel(a2a, callers, 800, _OK), True),
        ]
    return [
        Block(
            name="peers",
            windows=measured,
            rows=[
                _row(_FASTAPI, 64, "per_second", at_least(6)),
                _row(_FASTAPI, 16, "p99", at_most(0.2)),
                _row(_A2A, 16, "per_second", at_least(6)),
                _row(_A2A, 64, "per_second", at_least(7)),
                _row(_A2A, 16, "p99", at_most(0.25)),
            ],
            rounds=4,
            quick_rounds=0,
        )
    ]


def _row(compared: tuple[str, str, str], callers: int, figure: str, target: Target) -> Row:
    name, window, to = compared
    unit = "calls/s" if figure == "per_second" else figure
    return Row(
        name=f"{name}, {callers} callers, {unit}",
        unit="×",
        value=ratio(figure, f"{window} {callers}", f"{to} {callers}"),
        target=target,
    )


class _Running:
    """The peers and their agent. The first window that needs them starts them."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = peers
        self._has_started = False

    def cancel(self, peer: Peer, callers: int, armed: int, status: int) -> Measure:
        """Each call cancels a running task of the peer. The records of the peer are checked."""

        def measure(setting: Setting, side: Side) -> Figures:
            self._start(setting)
            requests = peer.arm(armed)
            bodies = [request.encoded(peer.address) for request in requests]
            calls = windows.http_calls(peer.address, bodies, callers, _SECONDS, status)
            peer.check(requests[: windows.WARM_UP_CALLS + calls.count])
            return calls.figures()

        return measure

    def _start(self, setting: Setting) -> None:
        if self._has_started:
            return
        self._has_started = True
        folder = setting.folder / "peers"
        folder.mkdir()
        agent = Agent(folder)
        setting.resources.enter_context(agent.running())
        for peer in self._peers:
            url = setting.home.stack.ready["database_url"]
            setting.resources.enter_context(peer.running(url, agent, folder))
