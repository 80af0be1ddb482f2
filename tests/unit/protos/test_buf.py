"""Others can build the protos with buf, from a checkout or from the descriptor set."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from evershell.stack.envoy.documents import edge_file
from tests.support.stack import ROOT

BUF = Path(sys.executable).with_name("buf")


@pytest.mark.parametrize("source", [ROOT / "protos", edge_file("workspace.binpb")], ids=str)
def test_buf_builds_without_a_network(source: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.binpb"
    subprocess.run(
        [BUF, "build", source, "--output", image],
        check=True,
        timeout=60,
        # A separate cache without any module.
        env={"HOME": str(tmp_path), "BUF_CACHE_DIR": str(tmp_path / "cache"), "PATH": ""},
    )
    files = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file
    assert {
        "evershell/workspace/v1/workspace_service.proto",
        "google/api/annotations.proto",
        "google/rpc/error_details.proto",
    } <= {file.name for file in files}
