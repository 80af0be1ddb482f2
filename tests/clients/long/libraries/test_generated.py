"""A client with types from another project's generator makes calls to a stack.

It reads each error in full: the code, the message, the request id and the details.
"""

import json
from pathlib import Path
from typing import Any

from tests.support.npm import node, npm_tool, program_folder
from tests.support.openapi import PATH
from tests.support.stack import Stack

PROGRAMS = Path(__file__).with_name("programs")


def check_walk(output: str) -> None:
    """Checks what the client has read from the errors."""
    walk: dict[str, Any] = json.loads(output)
    workspace, task, errors = walk["workspace"], walk["task"], walk["errors"]
    resource = {"resource_type": "workspace", "resource_name": "ws_unknown"}
    no_task = {"resource_type": "task", "resource_name": "task_unknown", "workspace_id": workspace}
    scopes = ["workspace:write", "workspace:write:own"]
    too_long = {"reason": "has 501 characters; at most 500 are allowed"}
    assert {name: (error["code"], error["details"]) for name, error in errors.items()} == {
        "busy": (
            "workspace_busy",
            {"workspace_id": workspace, "task_id": task, "status": "busy"},
        ),
        "invalid": ("validation_error", {"fields": too_long}),
        "unknown": ("workspace_not_found", resource),
        "no_task": ("task_not_found", no_task),
        "denied": ("permission_denied", {"required": scopes}),
        "no_token": ("unauthenticated", {}),
        "stopped": ("workspace_stopped", {"workspace_id": workspace, "status": "stopped"}),
    }
    for error in errors.values():
        assert len(error["message"]) > 10
        assert len(error["request_id"]) == 36


def test_a_typescript_client_walks_and_reads_every_error(stack: Stack, tmp_path: Path) -> None:
    folder = program_folder(tmp_path, PROGRAMS / "walk.ts", PROGRAMS / "tsconfig.json")
    npm_tool("openapi-typescript/bin/cli.js", PATH, "-o", "schema.d.ts", folder=folder)
    (folder / "node.d.ts").write_text("declare const process: { argv: string[] };\n")
    npm_tool("typescript/bin/tsc", "--project", ".", folder=folder)
    arguments = [stack.ready["rest_url"], stack.tokens["full_access"], stack.tokens["read_only"]]
    done = node(folder / "walk.ts", *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    check_walk(done.stdout)
