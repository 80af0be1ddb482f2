"""The credentials and requests that the agent's service accepts."""

import time

import grpc
import pytest
from evershell.agent.v1.agent_service_pb2 import CancelTaskRequest

from tests.agent.conftest import Start, started
from tests.agent.control_plane import EPOCH, WORKSPACE_ID, ControlPlane, sign


async def test_only_a_fresh_token_of_the_control_plane_is_accepted(
    control_plane: ControlPlane, start: Start
) -> None:
    await started(control_plane, start)
    agent, now = control_plane.agent(), int(time.time())
    claims = {"iss": "evershell", "aud": "agent", "workspace_id": WORKSPACE_ID, "exp": now + 30}
    refused = [
        control_plane.token(workspace_id="ws_2"),
        control_plane.token(iss="other"),
        control_plane.token(aud="workspace"),
        control_plane.token(exp=now - 1),
        control_plane.token(exp=now + 600),
        control_plane.token(exp="soon"),
        sign(type(control_plane.key).generate_key("Ed25519"), claims),
        "nonsense",
        # A header that is a list.
        "WyJhbGciXQ.e30.AA",
    ]
    request = CancelTaskRequest(workspace_id=WORKSPACE_ID, epoch=EPOCH, task_id="t1")
    for metadata in [(), *(control_plane.metadata(token) for token in refused)]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await agent.CancelTask(request, metadata=metadata)
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    once = control_plane.token()
    for token in [once, once, sign(control_plane.key, claims, "Ed25519")]:
        assert not (await agent.CancelTask(request, metadata=control_plane.metadata(token))).known


async def test_another_epoch_is_refused(control_plane: ControlPlane, start: Start) -> None:
    await started(control_plane, start)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await control_plane.start_task(
            control_plane.agent(), control_plane.submit("t1", "true"), epoch=EPOCH + 1
        )
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("method", ["StartTask", "CancelTask", "GetSession"])
async def test_bytes_that_are_no_message_are_refused_with_a_plain_message(
    control_plane: ControlPlane, start: Start, method: str
) -> None:
    await started(control_plane, start)
    async with grpc.aio.insecure_channel(control_plane.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/evershell.agent.v1.AgentService/{method}"
        )
        for metadata, code in [
            ((), grpc.StatusCode.UNAUTHENTICATED),
            (control_plane.metadata(), grpc.StatusCode.INVALID_ARGUMENT),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"\xff\xff\xff", metadata=metadata)
            assert error.value.code() is code
            assert "deserializ" not in str(error.value.details())
            assert str(error.value.details()).endswith(".")
