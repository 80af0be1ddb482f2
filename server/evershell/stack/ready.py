"""The addresses and credentials of a running stack: in files, and in the text that shows the first
calls to make.
"""

import os
import shlex
import ssl
import sys
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

_NAME = "ready.json"
# The file that exports variables for a shell; see write_environment.
ENVIRONMENT = "demo.env"
_CALLS = """
Ready: REST at {rest_url}, gRPC at {grpc_addr}. Ctrl-C stops everything.{host_note}
{rest_url}/console shows the workspaces and cancels their tasks.
{rest_url}/docs documents the API and can call it.
In another terminal:

  . {state_dir}/demo.env
  # give the agent 15 minutes of work, in iterations of 5 minutes
  {curl} -sw '\\n' -X POST {rest_url}/v1/workspaces/{workspace_id}/tasks \\
    -H "Authorization: Bearer $TOKEN" -d '{{"description": "sleep 300\\nsleep 300\\nsleep 300"}}'
  # cancel it: the current iteration may finish
  {curl} -sw '\\n' -X POST {rest_url}/v1/workspaces/{workspace_id}/task/cancel \\
    -H "Authorization: Bearer $TOKEN"
  # the same over gRPC, and interrupt the iteration after 1 s
  {grpcurl} -H "authorization: Bearer $TOKEN" \\
    -d '{{"workspace_id": "{workspace_id}", "force_after": "1s"}}' \\
    {grpc_addr} evershell.workspace.v1.WorkspaceService/CancelTask
  # watch the events (Ctrl-C ends it)
  {curl} -sN "{rest_url}/v1/workspaces/{workspace_id}/events?after=0" \\
    -H "Authorization: Bearer $TOKEN"
  # the same, readable (`evershell --help` has more)
  {evershell} watch {workspace_id}
"""


_ANOTHER_START = """The stack waits. Save {agent_file} to start the agent again. \
If the cause is elsewhere, resume its workspace:
  . {state_dir}/demo.env; {evershell} workspace resume {workspace_id}"""
_HOST_NOTE = """
Requests must name the host {host}, because PUBLIC_DOMAIN is set. The console and the command
`evershell` need a name server or a line in /etc/hosts that leads this name to this machine."""


class Demo(BaseModel):
    """The demo organization: a workspace, and credentials by name."""

    model_config = ConfigDict(frozen=True)

    org_id: str
    # The host that requests must name; empty if they may name any host.
    host: str = ""
    workspace_id: str
    # An API key for each KeyTemplate, by the name of the template. Also session tokens by name: of
    # the owner, of a member, of a user of another organization, and an expired token of the owner.
    tokens: dict[str, str]


class Ready(BaseModel):
    """The content of ready.json. The names of its fields are stable."""

    model_config = ConfigDict(frozen=True)

    rest_url: str
    # host:port of gRPC at the edge.
    grpc_addr: str
    # host:port of the first worker.
    server_addr: str
    database_url: str
    # The edge's certificate; None without TLS.
    tls_cert_file: str | None = None
    demo: Demo

    @classmethod
    def read(cls, state_dir: Path) -> Self | None:
        """Reads ready.json of the stack that runs on `state_dir`. Returns None if there is no file.

        Raises OSError, and ValueError if the file is not valid.
        """
        try:
            return cls.model_validate_json((state_dir / _NAME).read_text())
        except FileNotFoundError:
            return None

    def write(self, state_dir: Path) -> None:
        """Writes ready.json. Raises OSError."""
        write_private(state_dir / _NAME, self.model_dump_json(indent=2, exclude_none=True))

    @property
    def grpc_url(self) -> str:
        """The URL of gRPC at the edge, in the form that the client expects."""
        return f"{'https' if self.tls_cert_file else 'http'}://{self.grpc_addr}"


def clear(state_dir: Path) -> None:
    """Removes the files that say that a stack is ready."""
    for name in (_NAME, ENVIRONMENT):
        (state_dir / name).unlink(missing_ok=True)


def trust(cert_file: str | Path) -> ssl.SSLContext:
    """A TLS context that trusts exactly this certificate, for any host name and from any issuer."""
    context = ssl.create_default_context(cafile=str(cert_file))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def write_private(path: Path, text: str) -> None:
    """Creates or replaces the file atomically. Only its owner can ever read it. Raises OSError.

    If root replaces a file of another user, the new file also belongs to that user.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        if os.geteuid() == 0 and path.exists() and (kept := path.stat()).st_uid != 0:
            os.fchown(file.fileno(), kept.st_uid, kept.st_gid)
        file.write(text)
    unfinished.replace(path)


def write_environment(ready: Ready, state_dir: Path) -> None:
    """Writes demo.env, which exports the variables that the first calls use. Raises OSError."""
    variables = {
        "TOKEN": ready.demo.tokens["full_access"],
        "REST_URL": ready.rest_url,
        "GRPC_ADDR": ready.grpc_addr,
        "WORKSPACE_ID": ready.demo.workspace_id,
        "EVERSHELL_URL": ready.grpc_url,
        "EVERSHELL_API_KEY": ready.demo.tokens["full_access"],
    }
    lines = "".join(f"export {name}={value}\n" for name, value in variables.items())
    write_private(state_dir / ENVIRONMENT, lines)


def another_start(demo: Demo, state_dir: Path, agent_file: Path) -> str:
    """The text that says how to start the agent of the demo workspace again."""
    return _ANOTHER_START.format(
        agent_file=os.path.relpath(agent_file),
        state_dir=os.path.relpath(state_dir),
        workspace_id=demo.workspace_id,
        evershell=_own("evershell"),
    )


def first_calls(ready: Ready, state_dir: Path) -> str:
    """The text that shows the first calls to make, as commands for a shell."""
    # The certificate may be self-signed, so the commands name it.
    cert = shlex.quote(os.path.relpath(ready.tls_cert_file)) if ready.tls_cert_file else ""
    curl = f"curl --cacert {cert}" if cert else "curl"
    grpcurl = f"{_own('grpcurl')} {f'-cacert {cert}' if cert else '-plaintext'}"
    evershell = _own("evershell")
    if host := ready.demo.host:
        curl, grpcurl = f"{curl} -H Host:{host}", f"{grpcurl} -authority {host}"
        url = ready.grpc_url.replace(ready.grpc_addr.rpartition(":")[0], host)
        evershell = f"EVERSHELL_URL={url} {evershell}"
    return _CALLS.format(
        host_note=_HOST_NOTE.format(host=host) if host else "",
        state_dir=os.path.relpath(state_dir),
        rest_url=ready.rest_url,
        grpc_addr=ready.grpc_addr,
        workspace_id=ready.demo.workspace_id,
        evershell=evershell,
        curl=curl,
        grpcurl=grpcurl,
    )


def _own(program: str) -> str:
    """The path of the program in this Python environment; only its name if it is not there."""
    own = Path(sys.executable).with_name(program)
    return os.path.relpath(own) if own.exists() else program
