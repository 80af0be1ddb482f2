"""The first calls to make, which `up` prints once everything runs."""

import os
import shlex
import sys
from pathlib import Path

from evershell.local.private_file import write_private
from evershell.local.ready import ENVIRONMENT, Ready

_CALLS = """
Ready: REST at {rest_url}, gRPC at {grpc_addr}. Ctrl-C stops everything.
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


def write_environment(ready: Ready, state_dir: Path) -> None:
    """Writes demo.env, which exports the variables that the calls use. Raises OSError."""
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


def first_calls(ready: Ready, state_dir: Path) -> str:
    """Shell commands that make the calls."""
    # The certificate may be self-signed, so the commands name it.
    cert = shlex.quote(os.path.relpath(ready.tls_cert_file)) if ready.tls_cert_file else ""
    return _CALLS.format(
        state_dir=os.path.relpath(state_dir),
        rest_url=ready.rest_url,
        grpc_addr=ready.grpc_addr,
        workspace_id=ready.demo.workspace_id,
        evershell=_own("evershell"),
        curl=f"curl --cacert {cert}" if cert else "curl",
        grpcurl=f"{_own('grpcurl')} {f'-cacert {cert}' if cert else '-plaintext'}",
    )


def _own(program: str) -> str:
    """The path of this environment's program, which may not be on the shell's path."""
    own = Path(sys.executable).with_name(program)
    return os.path.relpath(own) if own.exists() else program
