"""Limits the calls of each credential. Each worker counts for itself.

A limit keeps one caller's runaway loop from slowing down everyone else. Every bucket belongs to one
credential, so a loop uses up only its own allowance: the others can still cancel, also in the same
workspace. CancelTask has buckets of its own, so a credential that has used up its reads can still
cancel.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from throttled import MemoryStore, RateLimiterType, Throttled, per_sec

from server.api import call as calls
from server.api.interceptors import Context, Interceptor
from server.core import errors

_CANCEL_TASK = "/evershell.workspace.v1.WorkspaceService/CancelTask"
# More than a worker serves calls in the two seconds in which an empty bucket fills, so that what is
# forgotten, the longest unused first, was full again anyway. A bucket takes 300 bytes.
_MAX_BUCKETS = 20_000


@dataclass(frozen=True, slots=True)
class Rate:
    """So many calls a second, and so many at once after a pause."""

    per_second: int
    burst: int


class _Buckets:
    """Buckets of one kind, by key. The generic cell rate algorithm (ITU-T I.371): one number a key,
    and no timer.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._throttled = Throttled(
            using=RateLimiterType.GCRA.value,
            quota=per_sec(rate.per_second, burst=rate.burst),
            store=MemoryStore(options={"MAX_SIZE": _MAX_BUCKETS}),
        )

    def spend(self, key: str, subject: str) -> None:
        """Takes one from the bucket. Raises Failure rate_limited when it is empty; nothing is then
        taken.
        """
        found = self._throttled.limit(key)
        if found.limited:
            # Whole seconds, as `retry-after` has them: the next call may come to a worker whose
            # bucket is a little emptier.
            retry_after_seconds = math.ceil(found.state.retry_after)
            raise errors.rate_limited(
                f"{subject} more than {self._rate.per_second} times a second, and {self._rate.burst} times at once.",
                retry_after_seconds,
                limit_per_second=self._rate.per_second,
                limit_burst=self._rate.burst,
            )


class RateLimits(Interceptor):
    """Counts the calls of each credential. Calls without a caller (agents, health, reflection) are
    not limited.
    """

    def __init__(self, calls_rate: Rate, cancels_rate: Rate) -> None:
        self._calls = _Buckets(calls_rate)
        self._cancels = _Buckets(cancels_rate)

    async def around(
        self,
        details: grpc.HandlerCallDetails,
        context: Context,
        proceed: Callable[[], Awaitable[Any]],
    ) -> Any:
        """See Interceptor. A stream counts once, when it is opened."""
        caller = calls.current().caller
        if caller is not None:
            # A user's sessions share a bucket: a new token is no new allowance.
            key = f"{caller.org_id}\n{caller.credential_kind}\n{caller.actor_id}"
            if details.method == _CANCEL_TASK:
                self._cancels.spend(key, "Your credential has called CancelTask")
            else:
                self._calls.spend(key, "Your credential has called")
        return await proceed()
