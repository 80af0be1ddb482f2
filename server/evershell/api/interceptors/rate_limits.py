"""Limits the rate of calls of each credential. Each worker counts separately.

A limit keeps one caller's runaway loop from slowing down everyone else. Each credential has its own
buckets, so a loop uses up only its own allowance; others can still cancel, even in the same
workspace. Each credential has two buckets: one for cancellations, holds and releases, and one for
all other calls. A credential that has used up its other calls can therefore still cancel.
"""

import math
from dataclasses import dataclass
from typing import Any

from throttled import MemoryStore, RateLimiterType, Throttled, per_sec

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.interceptors.refusals import rate_limited
from evershell.api.method_options import CANCELLATIONS
from evershell.core.caller import Caller

# Beyond this number, the least recently used bucket is dropped. An unused bucket is full after two
# seconds, and in two seconds a worker serves fewer calls than this, so a dropped bucket was full. A
# bucket takes 300 bytes.
_MAX_BUCKETS = 20_000


@dataclass(frozen=True, slots=True)
class Rate:
    """The number of calls per second in the long run, and the size of a burst after a pause."""

    per_second: int
    burst: int


class _Buckets:
    """The buckets of one kind, by key. Implements the generic cell rate algorithm (ITU-T I.371)."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._throttled = Throttled(
            using=RateLimiterType.GCRA.value,
            quota=per_sec(rate.per_second, burst=rate.burst),
            store=MemoryStore(options={"MAX_SIZE": _MAX_BUCKETS}),
        )

    async def spend(self, call: Call, caller: Caller, method: Method, subject: str) -> None:
        """Takes one call from the bucket. Raises Failure rate_limited if the bucket is empty."""
        result = self._throttled.limit(caller.key)
        if result.limited:
            raise await rate_limited(
                call,
                method,
                f"{subject} more than {self._rate.per_second} times a second, and "
                f"{self._rate.burst} times at once.",
                # Whole seconds, as in the header `retry-after`. The repeat may still be refused,
                # because it may reach another worker, whose bucket is emptier.
                math.ceil(result.state.retry_after),
                limit_per_second=self._rate.per_second,
                limit_burst=self._rate.burst,
            )


class RateLimits(Interceptor):
    """Counts the calls of each credential. A stream counts once, when it is opened.

    Calls without a caller are not limited: calls of agents, health, reflection and reads of public
    agent cards.
    """

    def __init__(self, calls_rate: Rate, cancels_rate: Rate) -> None:
        self._calls = _Buckets(calls_rate)
        self._cancels = _Buckets(cancels_rate)

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        buckets, subject = self._calls, "Your credential has called"
        if method.path in CANCELLATIONS:
            buckets, subject = self._cancels, "Your credential has cancelled, held or released"

        async def limited(call: Call) -> Any:
            if call.caller is not None:
                await buckets.spend(call, call.caller, method, subject)
            return await proceed(call)

        return limited
