"""Makes calls to a running server, and compares what they do with the rules for access."""

from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from evershell.workspace.v1 import event_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.core.event import AuditEntry, AuditFilter
from evershell.core.ids import new_task_id, new_workspace_id
from tests.support.identity_provider import token
from tests.support.store.examples import permission
from tests.support.waiting import eventually_async
from tests.support.world import World
from tests.wire.api.access_rules import RULES, Principal, Target, refusal, required
from tests.wire.api.running import Failed, Metadata, Running, bearer

ORGS = ("org_a", "org_b")


@dataclass(frozen=True)
class Asked:
    """One call, by a principal, on a workspace and its task."""

    method: str
    principal: Principal | None
    # The index of the workspace in `Checking.targets`; None for a workspace that does not exist.
    target: int | None


@dataclass
class Checking:
    """A running server, the content of its store, and the audit entries that calls must leave."""

    world: World
    server: Running
    targets: list[Target] = field(default_factory=list)
    # The tasks of `targets`, in the same order. Workspaces that calls create come last, and have no
    # task.
    tasks: list[str] = field(default_factory=list)
    tokens: dict[Principal, str] = field(default_factory=dict)
    made: int = 0
    # The ids of the requests that must have an audit entry.
    expected: set[str] = field(default_factory=set)
    # The number of audited calls without a credential, whose entries may be lost.
    unauthenticated: int = 0

    async def add(self, org_id: str, creator: str | None) -> None:
        """Adds a workspace with a task that has ended."""
        idle = await self.world.add(org_id=org_id, created_by_user_id=creator)
        ended = await self.world.run(idle)
        await self.world.end(idle.id, ended.id)
        self.targets.append(Target(idle.id, org_id, creator))
        self.tasks.append(ended.id)

    async def call(self, asked: Asked) -> None:
        self.made += 1
        target, task_id = Target(new_workspace_id()), new_task_id()
        if asked.target is not None:
            target, task_id = self.targets[asked.target], self.tasks[asked.target]
        named = target if RULES[asked.method].on_workspace else None
        refused = refusal(asked.method, asked.principal, named)
        request_id = f"req_{self.made:06}"
        before = await self._state()
        seen = await self._send(asked, target.id, task_id, request_id)
        if refused:
            assert isinstance(seen, Failed), (asked, refused)
            assert seen.slug == refused, asked
            # A refused call changes nothing.
            assert await self._state() == before
        else:
            self._check_allowed(asked, target, task_id, seen)
        if refused == "permission_denied":
            assert asked.principal is not None and isinstance(seen, Failed)
            needed = seen.details["ErrorInfo"].metadata["required"].split(",")
            assert set(needed) == required(asked.method, asked.principal)
        if RULES[asked.method].audited:
            await self._check_recorded(asked, named, request_id, seen)
        if refused == "workspace_not_found" and target.org_id:
            assert isinstance(seen, Failed)
            await self._check_same_as_missing(asked, target, task_id, request_id, seen)

    def _check_allowed(self, asked: Asked, target: Target, task_id: str, seen: Any) -> None:
        if isinstance(seen, Failed) and "Webhook" in asked.method:
            # The webhook or the task does not exist, or there are too many webhooks.
            assert seen.slug in ("webhook_not_found", "task_not_found", "too_many_webhooks")
        elif isinstance(seen, Failed):
            # The state of the workspace or a hold may refuse the call, but nothing else.
            assert seen.code is grpc.StatusCode.FAILED_PRECONDITION, (asked, seen)
        elif asked.method == "GetTask":
            assert (seen.id, seen.workspace_id) == (task_id, target.id)
        elif asked.method == "CreateWorkspace":
            assert asked.principal is not None
            created = Target(seen.id, asked.principal.org_id, asked.principal.user_id)
            assert (seen.org_id, seen.created_by_user_id or None) == (
                created.org_id,
                created.creator,
            )
            self.targets.append(created)
        elif asked.method == "ListWorkspaces":
            visible = [
                each.id
                for each in self.targets
                if not refusal("GetWorkspace", asked.principal, each)
            ]
            assert sorted(each.id for each in seen.workspaces) == sorted(visible)

    async def _check_same_as_missing(
        self, asked: Asked, target: Target, task_id: str, request_id: str, seen: Failed
    ) -> None:
        """A workspace of another organization is answered like one that does not exist."""
        missing, other_id = new_workspace_id(), request_id.replace("req", "two")
        other = await self._send(asked, missing, task_id, other_id)
        assert isinstance(other, Failed)

        def alike(text: str) -> str:
            return text.replace(missing, target.id).replace(other_id, request_id)

        assert other.code is seen.code
        assert alike(other.message) == seen.message
        assert {name: alike(value) for name, value in other.trailers.items()} == seen.trailers
        assert other.status is not None and seen.status is not None
        # The ids have the same length, so the serialized messages may be compared.
        serialized = other.status.SerializeToString().decode("latin-1")
        assert alike(serialized).encode("latin-1") == seen.status.SerializeToString()
        if RULES[asked.method].audited:
            await self._check_recorded(asked, Target(missing), other_id, other)
            entries = [await self._entry(each) for each in (request_id, other_id)]
            facts = [replace(e, id="", workspace_id="", request_id="") for e in entries]
            assert facts[0] == facts[1]

    async def _check_recorded(
        self, asked: Asked, target: Target | None, request_id: str, seen: Any
    ) -> None:
        if asked.principal is None:
            self.unauthenticated += 1
            return
        self.expected.add(request_id)
        entry = await self._entry(request_id)
        assert (entry.rpc, entry.org_id) == (asked.method, asked.principal.org_id)
        kind = "api_key" if asked.principal.user_id is None else "session"
        assert (entry.actor_id, entry.credential_kind) == (asked.principal.actor_id, kind)
        assert target is None or entry.workspace_id == target.id
        assert entry.outcome == _outcome(asked.method, seen)

    async def count(self) -> None:
        """Checks that the expected requests have entries, and that no others do.

        Each audited call without a credential has an entry, or is counted as lost.
        """

        async def recorded() -> list[AuditEntry]:
            return [each for each in await self._all() if each.outcome != "unauthenticated"]

        assert {each.request_id for each in await recorded()} == self.expected
        audit = self.server.audit
        await eventually_async(
            lambda: (
                sum(each.outcome == "unauthenticated" for each in audit.entries) + audit.lost
                == self.unauthenticated
            )
        )

    async def _entry(self, request_id: str) -> AuditEntry:
        """The audit entry of a request. There is only one."""

        async def found() -> list[AuditEntry]:
            return [each for each in await self._all() if each.request_id == request_id]

        # A call that fails is recorded after its reply.
        (entry,) = await eventually_async(found)
        assert isinstance(entry, AuditEntry)
        return entry

    async def _all(self) -> list[AuditEntry]:
        """All entries, stored and queued, each id once."""
        stored = [
            each
            for org in ORGS
            for each in await self.world.store.list_audit_entries(
                permission(org_id=org), AuditFilter(), None, 10_000
            )
        ]
        found = [*self.server.audit.entries, *stored, *filter(None, self.server.webhooks.audit)]
        return list({each.id: each for each in found}.values())

    async def _state(self) -> Any:
        """All workspaces and the length of their logs."""
        store = self.world.store
        return [
            (each, len(await self.world.events(each.id)))
            for org in ORGS
            for each in await store.list_workspaces(permission(org_id=org), None, 1000)
        ]

    async def _send(self, asked: Asked, workspace_id: str, task_id: str, request_id: str) -> Any:
        """Makes the call. Returns its reply, the first message of its stream, or its failure."""
        metadata: Metadata = (("x-request-id", request_id), ("x-evershell-host", "x"))
        if asked.principal is not None:
            metadata = bearer(self._token(asked.principal), x_request_id=request_id)
        call = getattr(self.server.stub, asked.method)(
            _request(asked, workspace_id, task_id), metadata=metadata
        )
        try:
            if hasattr(call, "__aiter__"):
                return await call.read()
            return await call
        except grpc.aio.AioRpcError as error:
            return Failed.of(error)
        finally:
            call.cancel()

    def _token(self, principal: Principal) -> str:
        if principal.token:
            return principal.token
        if principal not in self.tokens:
            self.tokens[principal] = token(
                "ES256",
                sub=principal.user_id,
                org_id=principal.org_id,
                permissions=sorted(principal.scopes),
            )
        return self.tokens[principal]


def _request(asked: Asked, workspace_id: str, task_id: str) -> Any:
    """A valid request of the method."""
    kind = getattr(messages, f"{asked.method}Request")
    fields = {
        "workspace_id": workspace_id,
        "task_id": task_id,
        "description": "true",
        "all": True,
        "url": "https://a.example/",
        "event_types": [event_pb2.EventType.task_completed],
        "webhook_id": "wh_1",
    }
    more = {"page_size": 200} if asked.method == "ListWorkspaces" else {}
    if asked.method == "ListAuditEntries":
        del fields["task_id"]
    known = kind.DESCRIPTOR.fields_by_name
    return kind(**{name: value for name, value in fields.items() if name in known}, **more)


def _outcome(method: str, seen: Any) -> str:
    """What the audit log must say about this reply."""
    if isinstance(seen, Failed):
        return seen.slug
    if method == "CancelTask":
        name: str = messages.CancelTaskResponse.Outcome.Name(seen.outcome)
        return name
    return "ok"
