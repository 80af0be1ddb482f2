"""AGENT_TLS at an agent: who can reach its listener, and whom the agent calls."""

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from evershell.agent.v1.agent_service_pb2 import Signal
from evershell.workspace.v1.task_pb2 import Task

from evershell.conformance.control_plane import WORKSPACE_ID
from evershell.pod.signal_stream import NotAcknowledgedError, SignalStream
from evershell.pod.tls import Connector, TlsIdentity, agent_name
from tests.support.agent_tls import Certificates, certificates, fields
from tests.unit.agents.conftest import Start, started
from tests.unit.agents.faulty_plane import EPOCH, ControlPlane

NAME = agent_name(WORKSPACE_ID, EPOCH)
OK, REFUSED = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def of() -> Certificates:
    return certificates()


@pytest.fixture
async def agent(
    control_plane: ControlPlane, start: Start, of: Certificates
) -> AsyncIterator[ControlPlane]:
    """The control plane of an agent that uses TLS."""
    control_plane.tls = of.control_plane
    await started(control_plane, start, **fields(of.agent(WORKSPACE_ID, EPOCH)))
    yield control_plane


async def stream_code(agent: ControlPlane, channel: grpc.aio.Channel) -> grpc.StatusCode:
    """Opens a stream to the agent with a valid token, and sends a signal. Returns the status."""
    token = agent.signal_token
    async with channel:
        try:
            await SignalStream(channel, token).send(Signal(token=token))
        except NotAcknowledgedError as error:
            assert error.code is not None
            return error.code
    return OK


async def code_as(agent: ControlPlane, identity: TlsIdentity | None) -> grpc.StatusCode:
    return await stream_code(agent, Connector(identity).open(agent.address, NAME, ()))


async def test_a_task_is_started_and_cancelled_over_tls(agent: ControlPlane) -> None:
    await agent.run_task("t1", "sleep 60")
    # If the task was cancelled earlier, it would have no iteration.
    await agent.reaches(lambda: any(each.phase == Task.tool_call for each in agent.heartbeats))
    assert await agent.cancel("t1", force_after_seconds=0)
    await agent.reaches(lambda: agent.end("t1"))
    assert len(agent.iterations("t1")) == 1


async def test_an_agent_takes_no_calls_of_strangers(agent: ControlPlane, of: Certificates) -> None:
    """All strangers have a valid token.

    Another agent of the same control plane is a stranger too.
    """
    trusted = of.control_plane.trusted
    strangers = of.strangers(WORKSPACE_ID, EPOCH, trusted)
    # The control plane is not a stranger.
    assert await code_as(agent, strangers.pop("the control plane")) is OK
    strangers["the agent itself"] = TlsIdentity(
        certificate=of.agent(WORKSPACE_ID, EPOCH).certificate,
        private_key=of.agent(WORKSPACE_ID, EPOCH).private_key,
        trusted=trusted,
    )
    codes = {name: await code_as(agent, stranger) for name, stranger in strangers.items()}
    assert codes == dict.fromkeys(strangers, REFUSED)
    assert await code_as(agent, of.control_plane) is OK


async def test_an_agent_takes_no_plain_text_and_no_tls_without_a_certificate(
    agent: ControlPlane, of: Certificates
) -> None:
    assert await code_as(agent, None) is REFUSED
    anonymous = grpc.ssl_channel_credentials(of.control_plane.trusted.encode())
    options = [("grpc.ssl_target_name_override", NAME)]
    channel = grpc.aio.secure_channel(agent.address, anonymous, options=options)
    assert await stream_code(agent, channel) is REFUSED


async def test_an_agent_with_tls_sends_nothing_in_plain_text(
    control_plane: ControlPlane, start: Start, of: Certificates
) -> None:
    """The other workers offer only plain text, or have the certificate of another control plane."""
    plain = await control_plane.serve()
    control_plane.tls = certificates().control_plane
    foreign = await control_plane.serve()
    control_plane.tls = of.control_plane
    good = await control_plane.serve()
    start([plain, foreign, good], **fields(of.agent(WORKSPACE_ID, EPOCH)))
    await control_plane.reaches(lambda: control_plane.address)
    # Only one call has arrived, at the right worker, after the agent has tried the others.
    assert control_plane.calls == ["Register"]
