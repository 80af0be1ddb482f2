"""Limits how many calls of one credential and of one organization a worker serves at a time.

A worker has a fixed number of places for each kind of call, so other kinds cannot use up the places
of cancellations. A call holds one place until it ends. If the credential or the organization
already holds its share of the places, or no place is free, the call is refused at once. Each worker
counts separately. docs/shares.md lists these shares and all others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.interceptors.refusals import rate_limited
from evershell.api.method_options import FIRST, PUBLIC_SERVICES, WAITS
from evershell.core.caller import Caller

# A refused call may be repeated after this time.
RETRY_SECONDS = 1


class Kind(Enum):
    """What a place is for."""

    FIRST = "cancellations, stops, holds and reads of one task"
    READS = "lists, reads of the audit log and of current iterations"
    STREAMS = "open streams"
    WAITS = "calls of A2A that may wait for the end of a task"
    OTHERS = "all other calls"
    # Held while the body arrives, in addition to the place of the call.
    FIRST_BODIES = "slow bodies of cancellations, stops, holds and reads of one task"
    BODIES = "large or slow bodies of all other calls"


@dataclass(frozen=True, slots=True)
class Share:
    """The places of a worker, and how many of them an organization and a credential may hold."""

    total: int
    organization: int
    credential: int


# A credential's share is at least three times what a well-behaved credential uses at a worker: the
# bench has 64 callers and 1,000 watchers, and an A2A client that polls 15 workspaces makes 11 reads
# at once.
SHARES: Mapping[Kind, Share] = {
    Kind.FIRST: Share(20_000, 5_000, 2_500),
    Kind.READS: Share(144, 48, 36),
    Kind.STREAMS: Share(10_000, 4_000, 3_000),
    Kind.WAITS: Share(1_000, 200, 100),
    Kind.OTHERS: Share(2_048, 512, 256),
    Kind.FIRST_BODIES: Share(1_024, 256, 128),
    # A body has up to 1 MiB. The edge allows 256 large calls to all workers together (envoy.yaml).
    Kind.BODIES: Share(256, 64, 32),
}
# This method counts as a list, because each call asks the agent and many callers poll the method.
_POLL = "GetCurrentIteration"
# Calls without a credential (reads of public A2A cards) count as one organization and credential.
_STRANGERS = ("\n", "\n\n")


class Places:
    """The places of one kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        # The number of places that each organization and each credential holds. The key "" has the
        # number of all places that are held.
        self.held: dict[str, int] = {}

    def take(self, caller: Caller | None) -> tuple[str, str, str] | str:
        """Takes a place. Returns the argument for `free`, or the reason why there is no place."""
        share, held = SHARES[self.kind], self.held
        of_org, of_credential = (caller.org_id, caller.key) if caller else _STRANGERS
        keys = (of_credential, of_org, "")
        if held.get(of_credential, 0) >= share.credential:
            return self._reason("Your credential has", share.credential)
        if held.get(of_org, 0) >= share.organization:
            return self._reason("Your organization has", share.organization)
        if held.get("", 0) >= share.total:
            return self._reason("All callers together have", share.total)
        for key in keys:
            held[key] = held.get(key, 0) + 1
        return keys

    def _reason(self, who_has: str, limit: int) -> str:
        kind = self.kind.value
        return f"{who_has} {limit:,} calls of this kind in progress at this worker: {kind}."

    def free(self, keys: tuple[str, str, str]) -> None:
        """Frees a place that `take` has given."""
        held = self.held
        for key in keys:
            if held[key] == 1:
                del held[key]
            else:
                held[key] -= 1


class Shares(Interceptor):
    """Gives each public call a place for as long as it lasts."""

    def __init__(self) -> None:
        self._places = {kind: Places(kind) for kind in Kind}

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        kind = kind_of(method)
        if kind is None:
            return proceed
        places = self._places[kind]

        async def shared(call: Call) -> Any:
            taken = places.take(call.caller)
            if isinstance(taken, str):
                raise await rate_limited(call, method, taken, RETRY_SECONDS)
            try:
                return await proceed(call)
            finally:
                places.free(taken)

        return shared

    def bodies(self, method: Method) -> Places:
        """The places for the bodies of this method's calls."""
        is_first = kind_of(method) is Kind.FIRST
        return self._places[Kind.FIRST_BODIES if is_first else Kind.BODIES]


def kind_of(method: Method) -> Kind | None:
    """The kind of the method's calls; None for methods of agents, health and reflection."""
    if method.service not in PUBLIC_SERVICES:
        return None
    if method.path in FIRST:
        return Kind.FIRST
    if method.is_stream:
        return Kind.STREAMS
    if method.path == WAITS:
        return Kind.WAITS
    if method.name.startswith("List") or method.name == _POLL:
        return Kind.READS
    return Kind.OTHERS
