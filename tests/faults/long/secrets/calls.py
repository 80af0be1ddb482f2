"""Makes calls with credentials of every kind, in every place where a caller may put them."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
from evershell.workspace.v1 import workspace_service_pb2 as messages

from tests.support.secrets import Secret
from tests.support.stack import Stack
from tests.support.wires import raw_grpc

WORKSPACE_SERVICE = "/evershell.workspace.v1.WorkspaceService/"
RUNTIME_SERVICE = "/evershell.agent.v1.RuntimeService/"
# Headers that hold credentials in other systems.
OTHER_HEADERS = ("x-authorization", "proxy-authorization", "x-api-key", "cookie")
QUERY_NAMES = ("access_token", "token", "api_key", "authorization", "page_token")


def new_key() -> str:
    """Makes up a credential that looks like an API key but that no stack knows."""
    return "sk_" + secrets.token_urlsafe(32)


@dataclass
class Calls:
    """Makes the calls, and keeps their answers and the credentials that were made up for them."""

    stack: Stack
    workspace_id: str
    made_up: list[Secret] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)

    def key(self, purpose: str) -> str:
        secret = new_key()
        self.made_up.append(Secret(f"a key {purpose}", secret))
        return secret

    def with_each(self, tokens: dict[str, str]) -> None:
        """Sends each credential in its proper place, with calls that read and calls that write."""
        for token in tokens.values():
            for method, path in self._paths():
                self._rest(method, path, {"authorization": f"Bearer {token}"})
            for rpc in ("CancelTask", "GetWorkspace", "ListAuditEntries"):
                self._grpc(rpc, (("authorization", f"Bearer {token}"),))
            self._agent(token)

    def in_wrong_places(self, good: str) -> None:
        """Sends made-up credentials, and a valid one, in places where they do not belong."""
        for purpose, make in (("", self.key), ("good ", lambda _: good)):
            for header in OTHER_HEADERS:
                headers = {header: make(f"{purpose}in {header}")}
                self._rest("POST", f"/v1/workspaces/{self.workspace_id}/task/cancel", headers)
                self._grpc("CancelTask", tuple(headers.items()))
            for scheme in ("Basic", "Token", "bearer", ""):
                value = f"{scheme} {make(f'{purpose}with the scheme {scheme}')}".strip()
                self._rest("GET", "/v1/workspaces", {"authorization": value})
                self._grpc("ListWorkspaces", (("authorization", value),))
            for name in QUERY_NAMES:
                query = f"?{name}={make(f'{purpose}in the query as {name}')}"
                for path in (f"/v1/workspaces{query}", f"/nowhere{query}"):
                    self._rest("GET", path, {})
        twice = (("authorization", f"Bearer {good}"), ("authorization", f"Bearer {self.key('2')}"))
        self._grpc("CancelTask", twice)
        self._rest("GET", "/v1/workspaces", list(twice))

    def in_bodies(self, good: str) -> None:
        """Sends made-up credentials in bodies and fields that the service refuses."""
        own = {"authorization": f"Bearer {good}"}
        path = f"/v1/workspaces/{self.workspace_id}/task/cancel"
        for body in (
            f'{{"token": "{self.key("in an unknown field")}"}}',
            f"Bearer {self.key('as a body')}",
            f'{{"task_id": "{self.key("in an invalid id")} "}}',
            f'{{"wait": "{self.key("in a duration")}"}}',
        ):
            self._rest("POST", path, own, body)
        self._grpc("CancelTask", tuple(own.items()), b"\xff" + self.key("in no message").encode())

    def in_texts(self, good: str) -> list[Secret]:
        """Writes made-up credentials into texts that the service keeps. Returns these credentials.

        Also sends made-up credentials as filters of the audit log. The service does not keep these.
        """
        rest, written = self.stack.rest(good), []

        def text(purpose: str) -> str:
            written.append(Secret(f"a key written {purpose}", new_key()))
            return written[-1].value

        rest.post(
            f"/v1/workspaces/{self.workspace_id}/task/cancel", {"reason": text("as a reason")}
        )
        rest.post("/v1/workspaces", {"name": text("as a name")}, status=201)
        rest.call(
            "POST",
            "/v1/workspaces",
            json={},
            headers={"idempotency-key": text("as an idempotency key")},
        )
        for name in ("actor_id", "rpc", "outcome"):
            rest.get("/v1/audit", params={name: self.key(f"as the filter {name}")})
        return written

    def _paths(self) -> Iterator[tuple[str, str]]:
        base = f"/v1/workspaces/{self.workspace_id}"
        yield "POST", f"{base}/task/cancel"
        yield "GET", base
        yield "GET", "/v1/audit"
        yield "GET", "/nowhere"
        yield "POST", "/evershell.agent.v1.RuntimeService/Register"

    def _rest(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | list[tuple[str, str]],
        body: str | None = None,
    ) -> None:
        answer = httpx.request(
            method,
            self.stack.ready["rest_url"] + path,
            headers=headers,
            content=body,
            trust_env=False,
            timeout=20,
        )
        self.answers.append(repr((answer.headers, answer.text)).encode())

    def _grpc(self, rpc: str, metadata: tuple[tuple[str, str], ...], body: bytes = b"") -> None:
        if not body and rpc != "ListWorkspaces":
            body = messages.GetWorkspaceRequest(workspace_id=self.workspace_id).SerializeToString()
        for address in (self.stack.ready["grpc_addr"], self.stack.worker_addresses()[0]):
            answer = raw_grpc(address, WORKSPACE_SERVICE + rpc, metadata, body)
            self.answers.append(repr(answer).encode())

    def _agent(self, token: str) -> None:
        """Calls RuntimeService, which is for agents, with a caller's credential."""
        for address in (self.stack.ready["grpc_addr"], self.stack.worker_addresses()[0]):
            answer = raw_grpc(
                address, RUNTIME_SERVICE + "Register", (("authorization", f"Bearer {token}"),), b""
            )
            self.answers.append(repr(answer).encode())
