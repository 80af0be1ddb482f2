"""The peers of the bench cancel, refuse and record as the service does.

`make soak` and `make bench` install their packages.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.bench.peers import HttpRequest, Peer, WrongOutcomeError
from tests.bench.peers.a2a_peer import A2aPeer
from tests.bench.peers.agent import Agent
from tests.bench.peers.fastapi_peer import FastApiPeer
from tests.bench.peers.http_client import send_all

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        importlib.util.find_spec("a2a") is None,
        reason="the packages of the peers are not installed; `make soak` installs them",
    ),
]
SUCCESS = {"fastapi": 202, "a2a": 200}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def agent(folder: Path) -> Iterator[Agent]:
    with Agent(folder) as running:
        yield running


@pytest.fixture(scope="module")
def fastapi(server_url: str, agent: Agent, folder: Path) -> Iterator[Peer]:
    yield from started(FastApiPeer(), server_url, agent, folder)


@pytest.fixture(scope="module")
def a2a(server_url: str, agent: Agent, folder: Path) -> Iterator[Peer]:
    yield from started(A2aPeer(), server_url, agent, folder)


@pytest.fixture(params=["fastapi", "a2a"])
def peer(request: pytest.FixtureRequest) -> Peer:
    running: Peer = request.getfixturevalue(request.param)
    return running


def started(peer: Peer, server_url: str, agent: Agent, folder: Path) -> Iterator[Peer]:
    peer.start(server_url, agent.address, folder)
    yield peer
    peer.stop()


def send(peer: Peer, *requests: HttpRequest, callers: int = 1) -> list[httpx.Response]:
    return send_all(peer.address, requests, callers)


def test_each_cancellation_is_recorded_once_and_signalled(peer: Peer) -> None:
    requests = peer.arm(20)
    assert len({request.task_id for request in requests}) == 20

    answers = send(peer, *requests, callers=8)

    assert {answer.status_code for answer in answers} == {SUCCESS[peer.name]}
    peer.check(requests)


def test_a_task_that_was_not_cancelled_is_found(peer: Peer) -> None:
    cancelled, running = peer.arm(2)
    send(peer, cancelled)

    with pytest.raises(WrongOutcomeError, match=f"{running.task_id} is recorded 0 times"):
        peer.check([cancelled, running])


def test_a_cancellation_without_a_signal_is_found(peer: Peer, agent: Agent) -> None:
    requests = peer.arm(1)
    send(peer, *requests)
    # It has no signals any more.
    agent.stop()
    agent.start()

    with pytest.raises(WrongOutcomeError, match="has no signal"):
        peer.check(requests)


def test_concurrent_cancellations_of_one_task_are_recorded_once(fastapi: Peer) -> None:
    requests = fastapi.arm(1)

    answers = send(fastapi, *[*requests] * 8, callers=8)

    outcomes = sorted(answer.json()["outcome"] for answer in answers)
    assert outcomes == ["accepted", *["already_requested"] * 7]
    fastapi.check(requests)


def test_a_wrong_key_is_refused(peer: Peer) -> None:
    (request,) = peer.arm(1)
    forged = dataclasses.replace(request, headers={"Authorization": "Bearer sk_wrong"})

    (answer,) = send(peer, forged)

    assert answer.status_code == (401 if peer.name == "fastapi" else 400)
    with pytest.raises(WrongOutcomeError):
        peer.check([request])


def test_an_unreachable_agent_leaves_the_intent_recorded(fastapi: Peer, agent: Agent) -> None:
    requests = fastapi.arm(1)
    agent.stop()

    (answer,) = send(fastapi, *requests)

    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "agent_unreachable"
    assert error["details"] == {"task_id": requests[0].task_id, "intent_recorded": True}
    agent.start()
    assert send(fastapi, *requests)[0].json()["outcome"] == "already_requested"
    fastapi.check(requests)
