"""Rate limits through Envoy, with two workers that count separately."""

import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from tests.support.stack import Stack
from tests.support.wires import Failed, grpc_failure, rest_failure

PER_SECOND, WORKERS = 4, 2
# As docs/calls.md says, a burst is twice the rate.
BURST = 2 * PER_SECOND
RETRY_AFTER_SECONDS = 1

# Makes a call. Returns its failure, or None if it succeeded.
Call = Callable[[], Failed | None]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with a low rate, so that a test can empty the bucket faster than it refills."""
    with Stack(
        tmp_path_factory.mktemp("limited") / "state",
        RATE_LIMIT=str(PER_SECOND),
    ).started() as stack:
        yield stack


def over_rest(stack: Stack, token: str, method: str, suffix: str) -> Failed | None:
    path = f"/v1/workspaces/{stack.ready['demo']['workspace_id']}{suffix}"
    response = stack.rest(token).call(method, path)
    failed = rest_failure(response) if response.status_code >= 400 else None
    if failed is not None:
        assert response.headers["retry-after"] == str(failed.details["retry_after_seconds"])
    return failed


def over_grpc(stack: Stack, token: str, rpc: str) -> Failed | None:
    try:
        stack.grpc(token).call(rpc, workspace_id=stack.ready["demo"]["workspace_id"])
    except grpc.RpcError as error:
        return grpc_failure(error)
    return None


def spend(call: Call) -> Failed:
    """Makes calls until one is refused, and returns that failure.

    Fails if more than 10 calls succeed beyond the bursts of all workers and the refill since the
    start.
    """
    began, served = time.monotonic(), 0
    while served < BURST * WORKERS + 10 + WORKERS * PER_SECOND * (time.monotonic() - began):
        failed = call()
        if failed is not None:
            assert (failed.slug, served >= BURST) == ("rate_limited", True)
            return failed
        served += 1
    raise AssertionError("no call was refused")


def test_a_refused_caller_learns_when_to_retry_over_rest(limited: Stack) -> None:
    failed = spend(lambda: over_rest(limited, "owner", "GET", ""))
    assert (failed.status, failed.details["retry_after_seconds"]) == (429, RETRY_AFTER_SECONDS)
    assert "Your credential" in failed.message and "has changed nothing" in failed.message
    # Another credential can still read, and the limited one can still cancel, because cancellations
    # have their own bucket.
    assert over_rest(limited, "read_only", "GET", "") is None
    assert over_rest(limited, "owner", "POST", "/task/cancel") is None
    # The caller waits exactly as long as the error says.
    time.sleep(RETRY_AFTER_SECONDS)
    assert over_rest(limited, "owner", "GET", "") is None


def test_a_refused_caller_learns_when_to_retry_over_grpc(limited: Stack) -> None:
    failed = spend(lambda: over_grpc(limited, "submit_observe", "GetWorkspace"))
    assert failed.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.details["RetryInfo"] == {"retry_delay": f"{RETRY_AFTER_SECONDS}s"}
    assert over_grpc(limited, "submit_observe", "CancelTask") is None
