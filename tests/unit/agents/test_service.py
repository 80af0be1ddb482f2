"""The requests that the agent's service accepts. test_signal_tokens.py tests its credentials."""

import grpc
import pytest

from tests.unit.agents.conftest import Start, started
from tests.unit.agents.faulty_plane import EPOCH, ControlPlane


async def test_another_epoch_is_refused(control_plane: ControlPlane, start: Start) -> None:
    await started(control_plane, start)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await control_plane.start(control_plane.assign("true"), epoch=EPOCH + 1)
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
