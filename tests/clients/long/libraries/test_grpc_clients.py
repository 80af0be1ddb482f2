"""Clients of gRPC in other languages: Connect's for browsers, and the samples of docs/grpc.md."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evershell.stack.envoy.documents import edge_file
from tests.support.documents import blocks
from tests.support.npm import cache_folder, node, program_folder
from tests.support.stack import ROOT, Gate, Stack, Workspace

PROGRAMS = Path(__file__).with_name("programs")
DOCUMENT = ROOT / "docs" / "grpc.md"
DESCRIPTOR_SET = edge_file("workspace.binpb")
# Debian's packages for Go have the sources of the libraries in this GOPATH.
GO_LIBRARIES = Path("/usr/share/gocode")
GO_PROGRAMS = ("go", "protoc-gen-go", "protoc-gen-go-grpc")
GO_PACKAGES = (
    "golang-go golang-google-grpc-dev golang-google-genproto-dev protoc-gen-go-1-5 "
    "protoc-gen-go-grpc"
)
GO_SECONDS = 500


def sample(language: str) -> str:
    """The sample of docs/grpc.md in this language."""
    (code,) = [each.text for each in blocks(DOCUMENT.read_text()) if each.language == language]
    return code


def test_connects_client_for_browsers_works_as_it_is(
    stack: Stack, workspace: Workspace, tmp_path: Path
) -> None:
    folder = program_folder(tmp_path, PROGRAMS / "connect.js")
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
        # The edge itself refuses this call.
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
    task_id = workspace.begin(gate.command)
    arguments = [stack.ready["grpc_addr"], stack.tokens["full_access"]]
    done = node(folder / "cancel.js", *arguments, workspace.id, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert (answer["outcome"], answer["task_id"]) == ("accepted", task_id)
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    done = node(folder / "cancel.js", *arguments, "ws_unknown", folder=folder)
    assert json.loads(done.stdout)["code"] == 5


def build_go_sample(folder: Path) -> Path:
    """Generates the Go code and builds the sample. Returns the program."""
    sources = folder / "src" / "example.com"
    (sources / "cancel").mkdir(parents=True)
    (sources / "cancel" / "main.go").write_text(sample("go"))
    (folder / "buf.gen.yaml").write_text(sample("yaml"))
    protos = ROOT / "protos"
    buf = Path(sys.executable).with_name("buf")
    generate: list[str | Path] = [buf, "generate", protos, "--template", folder / "buf.gen.yaml"]
    generate += ["--path", protos / "evershell" / "workspace"]
    environment = {
        **os.environ,
        # Go's modules are off, so that nothing is downloaded.
        "GO111MODULE": "off",
        "GOPATH": f"{folder}:{GO_LIBRARIES}",
        "GOCACHE": str(cache_folder() / "go-build"),
        "GOTOOLCHAIN": "local",
    }
    program = folder / "cancel"
    for command in (generate, ["go", "build", "-o", str(program), "example.com/cancel"]):
        done = subprocess.run(
            command,
            cwd=sources,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=GO_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return program


@pytest.mark.soak
@pytest.mark.timeout(GO_SECONDS)
def test_the_sample_for_go_cancels_a_task(
    stack: Stack, workspace: Workspace, gate: Gate, tmp_path: Path
) -> None:
    if not all(map(shutil.which, GO_PROGRAMS)) or not GO_LIBRARIES.exists():
        pytest.skip(f"no Go with its gRPC here; apt-get install {GO_PACKAGES}")
    program = build_go_sample(tmp_path)
    task_id = workspace.begin(gate.command)

    def run(workspace_id: str) -> str:
        arguments = [stack.ready["grpc_addr"], stack.tokens["full_access"], workspace_id]
        command = [program, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        return done.stdout

    assert run(workspace.id).split() == ["accepted", task_id]
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    failed = run("ws_unknown")
    # The library decodes the details of the error.
    assert failed.startswith("NotFound ") and "WORKSPACE_NOT_FOUND" in failed
