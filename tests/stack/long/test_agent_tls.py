"""A stack with AGENT_TLS: a task is cancelled over TLS, and strangers are refused.

It listens on all addresses (LISTEN_HOST): other machines reach the edge, and nothing else.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import psutil
import pytest
from evershell.agent.v1.agent_service_pb2 import GetSessionRequest
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest
from evershell.agent.v1.runtime_service_pb2_grpc import RuntimeServiceStub

from evershell.auth.pod_tokens import PodTokens
from evershell.pod.tls import CONTROL_PLANE, TlsIdentity, agent_name
from tests.support.agent_tls import Certificates, certificates
from tests.support.programs import run
from tests.support.runtime_tokens import runtime_token
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually
from tests.wire.api.running import bearer

OK, UNAUTHENTICATED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
REFUSED = grpc.StatusCode.UNAVAILABLE
CALL_SECONDS = 20.0
RESTART_SECONDS = 80.0
ANY = "0.0.0.0"  # noqa: S104


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    state_dir = tmp_path_factory.mktemp("tls") / "state"
    with Stack(state_dir, AGENT_TLS="on", LISTEN_HOST=ANY).started() as own:
        yield own


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    return (stack.state_dir / "control-plane.jwk").read_text()


@pytest.fixture(scope="module")
def of(key: str) -> Certificates:
    return certificates(key)


@pytest.fixture(scope="module")
def tokens(key: str) -> PodTokens:
    return PodTokens(key)


@pytest.fixture
def workspace(stack: Stack) -> Workspace:
    return Workspace(stack)


def channel(address: str, identity: TlsIdentity | None, name: str) -> grpc.Channel:
    if identity is None:
        return grpc.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(
        identity.trusted.encode(), identity.private_key.encode(), identity.certificate.encode()
    )
    return grpc.secure_channel(
        address, credentials, options=[("grpc.ssl_target_name_override", name)]
    )


def heartbeat(
    address: str, identity: TlsIdentity | None, metadata: tuple[tuple[str, str], ...]
) -> Any:
    """The status of a heartbeat at a worker."""
    with channel(address, identity, CONTROL_PLANE) as opened:
        stub = RuntimeServiceStub(opened)
        return code_of(
            lambda: stub.Heartbeat(HeartbeatRequest(), metadata=metadata, timeout=CALL_SECONDS)
        )


def get_session(workspace: Workspace, identity: TlsIdentity | None, tokens: PodTokens) -> Any:
    """The status of a call to the agent of the workspace with a good signal token."""
    with channel(str(workspace.agent_address), identity, agent_name(workspace.id, 1)) as opened:
        stub, request = AgentServiceStub(opened), GetSessionRequest(workspace_id=workspace.id)
        metadata = tokens.signal_metadata(workspace.id, 1)
        return code_of(lambda: stub.GetSession(request, metadata=metadata, timeout=CALL_SECONDS))


def code_of(call: Any) -> Any:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return OK


def test_a_task_is_cancelled_over_tls(workspace: Workspace) -> None:
    gate = Gate(workspace)
    task_id = workspace.begin(gate.command, "echo never")
    # The signal arrives, or the answer would be agent_unreachable.
    assert workspace.cancel(reason="over TLS")["outcome"] == "accepted"
    gate.open()
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"], end["work_stopped"]) == ("cancelled", 1, "yes")
    following = workspace.submit("echo the same agent")
    assert workspace.await_end(following)["status"] == "completed"
    assert workspace.get()["epoch"] == "1"


def test_only_the_edge_listens_on_all_addresses(stack: Stack, workspace: Workspace) -> None:
    assert workspace.agent_address is not None
    # A listener of gRPC takes IPv4 through a socket of IPv6.
    found = {
        (process.name() == "envoy", connection.laddr.ip.removeprefix("::ffff:"))
        for process in stack.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found == {(True, ANY), (False, "127.0.0.1")}
    assert stack.ready["rest_url"].startswith("http://127.0.0.1:")


def test_agents_and_restarted_programs_accept_each_other(workspace: Workspace) -> None:
    """Each program has made a new certificate, and knows the agent only by its authority."""
    stack, gate = workspace.stack, Gate(workspace)
    task_id = workspace.begin(gate.command, gate.command, "echo never")
    assert run("restart", stack.state_dir).returncode == 0
    eventually(lambda: "rolling_restart_completed" in stack.output.read_text(), RESTART_SECONDS)
    gate.open()
    workspace.await_event("iteration_completed", task_id)
    # Between two iterations, a cancellation would let no other begin.
    workspace.await_phase(task_id, "tool_call")
    assert workspace.cancel()["outcome"] == "accepted"
    gate.open()
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"]) == ("cancelled", 2)


def test_a_worker_refuses_agents_with_another_certificate(
    workspace: Workspace, of: Certificates, tokens: PodTokens
) -> None:
    """They replay the token of the workspace's agent."""
    token = bearer(runtime_token(tokens, workspace.id, 1))
    own = of.agent(workspace.id, 1)
    for address in workspace.stack.runtime_addresses():
        assert heartbeat(address, own, token) is OK
        for name, identity in of.strangers(workspace.id, 1, own.trusted).items():
            assert heartbeat(address, identity, token) in (UNAUTHENTICATED, REFUSED), name
        assert heartbeat(address, None, token) is REFUSED


def test_an_agent_refuses_strangers(
    workspace: Workspace, of: Certificates, tokens: PodTokens
) -> None:
    assert get_session(workspace, of.control_plane, tokens) is OK
    strangers = of.strangers(workspace.id, 1, of.control_plane.trusted)
    del strangers["the control plane"]
    for name, identity in strangers.items():
        assert get_session(workspace, identity, tokens) is REFUSED, name
    assert get_session(workspace, None, tokens) is REFUSED
