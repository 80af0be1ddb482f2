"""Clients of gRPC in other languages: Connect's for browsers, and the samples of docs/grpc.md."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from evershell.server.stack.envoy.files import edge_file
from tests.exhaustive.clients.tools import node, program_folder
from tests.support.stack import Gate, Stack, Workspace

DOCUMENT = Path(__file__).parents[3] / "docs" / "grpc.md"
DESCRIPTOR_SET = edge_file("workspace.binpb")


def sample(language: str) -> str:
    """The code of a language in the document."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return str(code)


def test_connects_client_for_browsers_works_as_it_is(
    stack: Stack, workspace: Workspace, tmp_path: Path
) -> None:
    folder = program_folder(tmp_path, "connect.js")
    arguments = [DESCRIPTOR_SET, stack.ready["rest_url"], stack.tokens["full_access"]]
    done = node(folder / "connect.js", *arguments, workspace.id, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    task_id = seen["submitted"]["task_id"]
    assert seen["cancelled"]["task"]["status"] == "cancelled"
    assert seen["cancelled"]["task_id"] == task_id
    assert seen["types"][-2:] == ["iteration_completed", "task_completed"]
    slugs = {
        "unknown": ("NotFound", "WORKSPACE_NOT_FOUND"),
        "no_token": ("Unauthenticated", "UNAUTHENTICATED"),
        "invalid": ("InvalidArgument", "VALIDATION_ERROR"),
        # The edge itself refuses this one.
        "too_large": ("InvalidArgument", "VALIDATION_ERROR"),
    }
    for name, (code, reason) in slugs.items():
        (info,) = seen[name]["info"]
        assert (seen[name]["code"], info["reason"]) == (code, reason), name
        assert len(seen[name]["request_id"]) == 36
        assert len(seen[name]["message"]) > 10
    assert seen["unknown"]["info"][0]["metadata"]["resource_name"] == "ws_unknown"


def test_the_sample_for_node_cancels_a_task(
    stack: Stack, workspace: Workspace, gate: Gate, tmp_path: Path
) -> None:
    folder = program_folder(tmp_path)
    (folder / "cancel.js").write_text(sample("js"))
    shutil.copy(DESCRIPTOR_SET, folder)
    task_id = workspace.submit(gate.command)
    workspace.await_phase(task_id, "tool_call")
    arguments = [stack.ready["grpc_addr"], stack.tokens["full_access"]]
    done = node(folder / "cancel.js", *arguments, workspace.id, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert (answer["outcome"], answer["task_id"]) == ("accepted", task_id)
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    done = node(folder / "cancel.js", *arguments, "ws_unknown", folder=folder)
    assert json.loads(done.stdout)["code"] == 5
