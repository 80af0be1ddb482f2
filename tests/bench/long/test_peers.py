"""The peers of the bench cancel, refuse and record as the service does.

The peers are what people would build instead of this service. The tests need the packages of the
peers, which `make soak` and `make bench` install.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from bench.peers.a2a_peer import A2aPeer
from bench.peers.agent import Agent
from bench.peers.fastapi_peer import FastApiPeer
from bench.peers.peer import HttpRequest, Peer, WrongOutcomeError

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        importlib.util.find_spec("a2a") is None,
        reason="the packages of the peers are not installed; `make soak` installs them",
    ),
]


@pytest.fixture(params=[FastApiPeer, A2aPeer])
def peer(request: pytest.FixtureRequest, server_url: str, tmp_path: Path) -> Iterator[Peer]:
    started: Peer = request.param()
    agent = Agent(tmp_path)
    with agent.running(), started.running(server_url, agent, tmp_path):
        yield started


def send(peer: Peer, request: HttpRequest) -> httpx.Response:
    url = f"http://{peer.address}{request.path}"
    return httpx.post(url, headers=request.headers, content=request.body, trust_env=False)


def test_a_cancellation_is_recorded_once_and_signalled(peer: Peer) -> None:
    cancelled, running, denied = peer.arm(3)
    assert send(peer, cancelled).is_success
    send(peer, cancelled)
    peer.check([cancelled])
    forged = dataclasses.replace(denied, headers={"Authorization": "Bearer sk_wrong"})
    assert send(peer, forged).status_code in (400, 401)
    for request in (running, denied):
        with pytest.raises(WrongOutcomeError, match=f"{request.task_id} is recorded 0 times"):
            peer.check([request])


def test_an_unreachable_agent_leaves_the_intent_recorded(server_url: str, tmp_path: Path) -> None:
    peer, agent = FastApiPeer(), Agent(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(peer.running(server_url, agent, tmp_path))
        (request,) = peer.arm(1)
        answer = send(peer, request)
        assert answer.status_code == 503
        assert answer.json()["error"]["details"] == {
            "task_id": request.task_id,
            "intent_recorded": True,
        }
        stack.enter_context(agent.running())
        with pytest.raises(WrongOutcomeError, match="has no signal"):
            peer.check([request])
        assert send(peer, request).json()["outcome"] == "already_requested"
        peer.check([request])
