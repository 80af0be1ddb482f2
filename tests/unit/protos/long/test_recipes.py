"""The recipes of CONTRIBUTING.md for a read-only RPC and for an error slug are complete.

The tests follow both recipes in a copy of the checkout. After `make gen`, the copy answers over
REST and gRPC, and its clients, documents and tables of tests have the additions.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import Edit, copied_checkout
from tests.support.stack import environment_of

API = "protos/evershell/workspace/v1"
SERVICE, ERRORS = f"{API}/workspace_service.proto", f"{API}/error.proto"
SERVICER = "server/evershell/api/workspace_servicer.py"
NEW = {
    f"{API}/server.proto": """\
syntax = "proto3";

package evershell.workspace.v1;

import "evershell/workspace/v1/field.proto";
import "google/protobuf/timestamp.proto";

option go_package = "evershell.ai/workspace/v1;workspacev1";

// The service as a caller sees it.
message Server {
  // What time it is for the service.
  google.protobuf.Timestamp time = 1 [(field) = {always_set: true}];
}
""",
    "tests/stack/test_server.py": """\
\"\"\"The time of the service, through the edge.\"\"\"

from datetime import datetime

from evershell.client import Client, Server
from tests.support.stack import Stack


def test_the_service_says_its_time(stack: Stack) -> None:
    server = stack.rest("read_only").get("/v1/server")
    assert datetime.fromisoformat(server["time"]).tzinfo is not None
    assert stack.grpc("read_only").call("GetServer").keys() == {"time"}
    with Client(stack.ready["grpc_addr"], stack.tokens["full_access"]) as client:
        read = client.get_server()
        assert isinstance(read, Server) and read.time is not None
""",
}
RPC = (
    Edit(
        SERVICE,
        'import "evershell/workspace/v1/task.proto";\n',
        'import "evershell/workspace/v1/server.proto";\n'
        'import "evershell/workspace/v1/task.proto";\n',
    ),
    Edit(
        SERVICE,
        "  // Creates a webhook: an address to which",
        """\
  // Reads what time it is for the service.
  //
  // Effect: none. Idempotency: a read.
  // Errors: only the ones that every call can return.
  // Needs workspace:read or workspace:read:own.
  rpc GetServer(GetServerRequest) returns (Server) {
    option (google.api.http) = {get: "/v1/server"};
    option (edge) = {success_status: 200, repeat: always, access: {scopes: "workspace:read"}};
  }

  // Creates a webhook: an address to which""",
    ),
    Edit(
        SERVICE,
        "message GetCallerRequest {}\n",
        "message GetCallerRequest {}\nmessage GetServerRequest {}\n",
    ),
    Edit(
        "server/evershell/core/workspaces.py",
        "async def create_workspace(",
        """\
def read_server_time(caller: Caller, clock: Clock) -> datetime:
    \"\"\"What time it is for the service. Raises Failure permission_denied.\"\"\"
    caller.permission("workspace:read")
    return clock()


async def create_workspace(""",
    ),
    Edit(SERVICER, "    hold_pb2,\n", "    hold_pb2,\n    server_pb2,\n"),
    Edit(
        SERVICER,
        "    async def GetCaller(\n",
        """\
    async def GetServer(
        self, request: workspace_service_pb2.GetServerRequest, context: Context
    ) -> server_pb2.Server:
        message = server_pb2.Server()
        message.time.FromDatetime(workspaces.read_server_time(caller(), self.clock))
        return message

    async def GetCaller(
""",
    ),
)
# ResumeWorkspace answers with this slug while the agent is ending.
SLUG = (
    Edit(
        ERRORS,
        "    // The workspace already has a task. Example",
        """\
    // The workspace is still stopping. Example: ResumeWorkspace right after StopWorkspace.
    workspace_stopping = 60 [(rule) = {
      grpc: FAILED_PRECONDITION, http: 409, no_retry: true
      rpcs: ['ResumeWorkspace']
      details: '{"workspace_id": "ws_01M87BM0PP0WA7E1PDVM5FMDFS", "status": "stopping"}'
      action: 'Wait until the workspace is `stopped`.'
    }];
    // The workspace already has a task. Example""",
    ),
    Edit(
        "server/evershell/core/workspace_lifecycle.py",
        'Failure("invalid_state", message, workspace_id',
        'Failure("workspace_stopping", message, workspace_id',
    ),
    Edit(
        "tests/unit/core/test_workspace_lifecycle.py",
        '("invalid_state", "stopping")',
        '("workspace_stopping", "stopping")',
    ),
)
# The generators of `make gen` that a change of the API needs.
GENERATORS = ("protos/generate.py", ".make/sync_client.py", ".make/pages.py")
# The tests with tables of all methods or slugs, and the test that the recipe adds.
TESTS = (
    "tests/unit/client/test_closed_sets.py",
    "tests/unit/client/test_errors.py",
    "tests/unit/cli/test_commands.py",
    "tests/unit/core/test_workspace_lifecycle.py",
    "tests/unit/protos/test_openapi.py",
    "tests/wire/api/test_errors.py",
    "tests/wire/api/test_reading.py",
    "tests/stack/test_server.py",
)


@pytest.mark.timeout(1_200)
def test_a_copy_gets_an_rpc_and_a_slug(tmp_path: Path) -> None:
    copy = copied_checkout(tmp_path / "checkout", *RPC, *SLUG)
    for name, text in NEW.items():
        (copy / name).write_text(text)

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=copy,
            env={**os.environ, **environment_of(copy)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    for generator in GENERATORS:
        run(generator)
    run("protos/generate.py", "--check")
    run("-m", "mypy", "client", "server/evershell/api")
    run("-m", "pytest", "-n0", *TESTS)
    for page, text in (
        ("docs/calls.md", "| GetServer | GET `/v1/server` | 200 | `workspace:read` | |"),
        ("docs/errors.md", "## workspace_stopping"),
        ("CHANGELOG.md", "The call [GetServer]"),
        ("CHANGELOG.md", "The error [`workspace_stopping`]"),
        ("client/evershell/client/__init__.py", "WorkspaceStoppingError"),
        ("docs/commands.md", "## evershell get server"),
        ("clients/typescript/src/index.ts", "server_pb.js"),
    ):
        assert text in (copy / page).read_text()
