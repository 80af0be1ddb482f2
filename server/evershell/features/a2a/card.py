"""Encodes the agent card of a workspace (A2A, section 8)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256

from a2a.types import a2a_pb2

from evershell import version
from evershell.core.workspace import AgentCard, Workspace
from evershell.features.a2a.decode import TEXT, VERSION

# How long a client may use a card without asking again.
_MAX_AGE_SECONDS = 60
_ORG = "{org}"
_DESCRIPTION = "An agent that works on one task at a time in a workspace, until it is cancelled."
_SKILL = {"task": "Does what the text of a message says."}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where callers reach the service. `{org}` stands for the slug of the organization."""

    rest_url: str
    grpc_address: str
    # Finds the slug of an organization by its id.
    find_slug: Callable[[str], Awaitable[str | None]]

    async def of(self, org_id: str) -> tuple[str, str]:
        """The base URL of REST, and host:port of gRPC, for an organization."""
        if _ORG not in self.rest_url + self.grpc_address:
            return self.rest_url, self.grpc_address
        slug = await self.find_slug(org_id) or ""
        return self.rest_url.replace(_ORG, slug), self.grpc_address.replace(_ORG, slug)


async def encode_card(
    workspace: Workspace, card: AgentCard, endpoints: Endpoints, *, has_push: bool
) -> a2a_pb2.AgentCard:
    """The workspace's card. The tenant of each binding is the workspace."""
    rest_url, grpc_address = await endpoints.of(workspace.org_id)
    return a2a_pb2.AgentCard(
        name=workspace.name or workspace.id,
        description=card.description or _DESCRIPTION,
        version=version.VERSION,
        supported_interfaces=[
            a2a_pb2.AgentInterface(
                url=url, protocol_binding=binding, tenant=workspace.id, protocol_version=VERSION
            )
            for url, binding in ((f"{rest_url}/a2a", "HTTP+JSON"), (grpc_address, "GRPC"))
        ],
        capabilities=a2a_pb2.AgentCapabilities(
            streaming=True, push_notifications=has_push, extended_agent_card=True
        ),
        security_schemes={
            "bearer": a2a_pb2.SecurityScheme(
                http_auth_security_scheme=a2a_pb2.HTTPAuthSecurityScheme(
                    scheme="Bearer", description="An API key or a session token."
                )
            )
        },
        security_requirements=[
            a2a_pb2.SecurityRequirement(schemes={"bearer": a2a_pb2.StringList()})
        ],
        default_input_modes=[TEXT],
        default_output_modes=[TEXT],
        skills=[
            a2a_pb2.AgentSkill(id=name, name=name, description=about or name, tags=[name])
            for name, about in sorted((card.skills or _SKILL).items())
        ],
    )


def cache_headers(card: a2a_pb2.AgentCard, *, is_public: bool) -> tuple[tuple[str, str], ...]:
    """The headers with which clients cache the card (A2A, section 8.6)."""
    digest = sha256(card.SerializeToString(deterministic=True)).hexdigest()
    scope = "public" if is_public else "private"
    return (
        ("etag", f'"{digest[:32]}"'),
        ("cache-control", f"{scope}, max-age={_MAX_AGE_SECONDS}"),
    )
