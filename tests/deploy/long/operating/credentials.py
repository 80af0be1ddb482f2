"""Callers whose credentials a test rotates, and an issuer of session tokens."""

from pathlib import Path
from typing import Any

import grpc
from evershell.workspace.v1 import workspace_service_pb2_grpc
from joserfc.jwk import ECKey

from tests.stack.long.load import GrpcCaller, RestCaller
from tests.support.identity_provider import jwk_set, token
from tests.support.stack import Stack

SCOPES = ["workspace:read", "workspace:write", "tasks:write"]


class Credential:
    """The credential that a caller sends with its next call."""

    def __init__(self, token: str) -> None:
        self.token = token


class Issuer:
    """An identity provider that publishes its keys in a file."""

    def __init__(self, jwks_file: Path) -> None:
        self._file = jwks_file
        self._keys: dict[str, ECKey] = {}
        self.add("first")

    def add(self, kid: str) -> None:
        """Publishes a key in addition to the others."""
        self._keys[kid] = ECKey.generate_key("P-256", {"kid": kid})
        self._publish()

    def remove(self, kid: str) -> None:
        del self._keys[kid]
        self._publish()

    def _publish(self) -> None:
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(jwk_set(*self._keys.values()))
        unfinished.replace(self._file)

    def token(self, kid: str, org_id: str) -> str:
        return token("ES256", self._keys[kid], org_id=org_id, permissions=SCOPES)


class Rest(RestCaller):
    """Calls over REST with TLS."""

    def __init__(self, stack: Stack, credential: Credential) -> None:
        self._credential = credential
        super().__init__(stack)

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        self._client.headers["authorization"] = f"Bearer {self._credential.token}"
        return super().call(rpc, **fields)


class Grpc(GrpcCaller):
    """Calls over gRPC with TLS, and trusts one authority."""

    def __init__(self, stack: Stack, credential: Credential, ca_file: Path) -> None:
        self._credential = credential
        self._roots = ca_file.read_bytes()
        super().__init__(stack)

    def _connect(self) -> None:
        self._channel = grpc.secure_channel(
            self._service.ready["grpc_addr"],
            grpc.ssl_channel_credentials(self._roots),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        self._stub = workspace_service_pb2_grpc.WorkspaceServiceStub(self._channel)

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        self._metadata = (("authorization", f"Bearer {self._credential.token}"),)
        return super().call(rpc, **fields)
