"""Rate limits through Envoy. Each of the two workers counts separately."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.support.stack import Stack, Workspace
from tests.support.wires import Failed, grpc_failure, rest_failure

PER_SECOND, WORKERS = 4, 2
# docs/calls.md
BURST, CANCEL_BURST = 2 * PER_SECOND, PER_SECOND
RETRY_AFTER_SECONDS = 1
# The refill is slow, so that the bucket does not fill while a test empties it.
ENVIRONMENT = {
    "RATE_LIMIT": "on",
    "RATE_LIMIT_PER_SECOND": str(PER_SECOND),
}

# Makes a call. Returns its failure, or None if it succeeded.
Call = Callable[[], Failed | None]


@pytest.fixture(params=["rest", "grpc"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("limited") / "state", **ENVIRONMENT).started() as stack:
        yield stack


def read(stack: Stack, wire: str, token: str) -> Call:
    return calling(
        stack, wire, token, "GetWorkspace", "GET", "", stack.ready["demo"]["workspace_id"]
    )


def cancel(stack: Stack, wire: str, token: str, workspace_id: str, task_id: str = "") -> Call:
    path = f"/tasks/{task_id}/cancel" if task_id else "/task/cancel"
    return calling(
        stack,
        wire,
        token,
        "CancelTask",
        "POST",
        path,
        workspace_id,
        **({"task_id": task_id} if task_id else {}),
    )


def calling(
    stack: Stack,
    wire: str,
    token: str,
    rpc: str,
    method: str,
    suffix: str,
    workspace_id: str,
    **fields: Any,
) -> Call:
    def over_rest() -> Failed | None:
        response = stack.rest(token).call(method, f"/v1/workspaces/{workspace_id}{suffix}")
        failed = rest_failure(response) if response.status_code >= 400 else None
        if failed is not None and failed.slug == "rate_limited":
            assert response.headers["retry-after"] == str(failed.details["retry_after_seconds"])
        return failed

    def over_grpc() -> Failed | None:
        try:
            stack.grpc(token).call(rpc, workspace_id=workspace_id, **fields)
        except grpc.RpcError as error:
            return grpc_failure(error)
        return None

    return over_rest if wire == "rest" else over_grpc


def spend(call: Call, least: int) -> Failed:
    """Makes calls until one is refused, and returns that failure.

    At least `least` calls must succeed before. At most, the bursts of all workers and the refill
    since the start succeed, with 10 calls of tolerance.
    """
    began, served = time.monotonic(), 0
    while served < least * WORKERS + 10 + WORKERS * PER_SECOND * (time.monotonic() - began):
        failed = call()
        if failed is not None and failed.slug == "rate_limited":
            assert served >= least
            return failed
        served += 1
    raise AssertionError("no call was refused")


def test_a_refused_caller_learns_when_to_retry_and_other_credentials_are_served(
    limited: Stack, wire: str
) -> None:
    """REST and gRPC use different credentials, so each begins with a full bucket."""
    looping = {"rest": "owner", "grpc": "submit_observe"}[wire]
    failed = spend(read(limited, wire, looping), BURST)
    assert failed.status == {"rest": 429, "grpc": grpc.StatusCode.RESOURCE_EXHAUSTED}[wire]
    assert "Your credential" in failed.message and "has changed nothing" in failed.message
    if wire == "rest":
        assert failed.details["retry_after_seconds"] == RETRY_AFTER_SECONDS
    else:
        assert failed.details["RetryInfo"] == {"retry_delay": f"{RETRY_AFTER_SECONDS}s"}
    # Another credential of the same organization can read. Reads and cancellations have separate
    # buckets, so this credential can cancel.
    assert read(limited, wire, "read_only")() is None
    assert cancel(limited, wire, looping, limited.ready["demo"]["workspace_id"])() is None
    # The caller waits exactly as long as the error says.
    time.sleep(RETRY_AFTER_SECONDS)
    assert read(limited, wire, looping)() is None


def test_a_loop_of_cancellations_limits_no_reads_and_no_other_credential(
    limited: Stack, wire: str
) -> None:
    looping, other = {"rest": ("member", "full_access"), "grpc": ("other_org", "owner")}[wire]
    failed = spend(cancel(limited, wire, looping, f"ws_{wire}"), CANCEL_BURST)
    assert "cancelled" in failed.message
    # The read may fail for another reason: some credentials may not read the demo workspace.
    refused = read(limited, wire, looping)()
    assert refused is None or refused.slug != "rate_limited"
    # The workspace does not exist. The loop used up no calls of the other credential.
    seen = cancel(limited, wire, other, f"ws_{wire}")()
    assert seen is not None and seen.slug == "workspace_not_found"


def test_a_loop_on_a_wrong_task_does_not_limit_the_owners_cancellations(limited: Stack) -> None:
    """Both cancel in the same workspace.

    The loop empties only its own buckets on both workers. The owner stays within its limit.
    """
    workspace_id = limited.ready["demo"]["workspace_id"]
    loop = cancel(limited, "grpc", "full_access", workspace_id, "task_wrong")
    seen = loop()
    assert seen is not None and seen.slug == "task_not_found"
    spend(loop, CANCEL_BURST - 1)
    owner = cancel(limited, "rest", "owner", workspace_id)
    assert [owner() for _ in range(CANCEL_BURST)] == [None] * CANCEL_BURST


def test_a_stack_with_rate_limits_off_refuses_no_call(stack: Stack, workspace: Workspace) -> None:
    for _ in range(250):
        assert stack.rest("read_only").call("GET", workspace.path).status_code == 200
