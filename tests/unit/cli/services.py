"""A stack and a remote service, and a function that returns which one a command would call."""

import io

from evershell.cli.service import find_target
from evershell.stack.ready import Demo, Ready

READY = Ready(
    rest_url="http://127.0.0.1:8080",
    grpc_addr="127.0.0.1:8081",
    server_addr="127.0.0.1:50051",
    database_url="postgresql:///evershell",
    demo=Demo(org_id="org_demo", workspace_id="ws_demo", tokens={"full_access": "sk_demo"}),
)
HOME = "https://acme.evershell.ai"


def find(url: str = "", profile: str = "", token: str | None = None) -> tuple[str, str]:
    file = None if token is None else io.StringIO(token)
    found = find_target(url, profile, file, {})
    return found.url, found.credential
