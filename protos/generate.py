"""Writes gen/ from protos/: Python, stubs, the descriptor set and the edge's routes. Run by `make gen`."""

import argparse
import importlib.resources
import shutil
import subprocess
import sys
from pathlib import Path

from google.rpc import code_pb2

PROTOS = Path(__file__).resolve().parent


def proto_files() -> list[str]:
    """Every proto, as protoc names it."""
    return sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def protoc(*arguments: str) -> None:
    """Runs the protoc that grpcio-tools carries; google's own protos come from googleapis-common-protos.

    Raises subprocess.CalledProcessError when a proto is wrong; protoc has then said where.
    """
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    googleapis = Path(code_pb2.__file__).parents[2]
    includes = [f"-I{PROTOS}", f"-I{googleapis}", f"-I{well_known}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *includes, *arguments, *proto_files()], check=True, cwd=PROTOS)


def main() -> None:
    """Writes everything anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PROTOS.parent / "gen")
    out: Path = parser.parse_args().out.resolve()
    shutil.rmtree(out / "evershell", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    protoc(f"--python_out={out}", f"--grpc_python_out={out}", f"--mypy_out={out}", f"--mypy_grpc_out={out}")
    # Lint and the comments in documents need the source positions; the edge needs every imported file in the set.
    protoc(f"--descriptor_set_out={out / 'workspace.binpb'}", "--include_imports", "--include_source_info")


if __name__ == "__main__":
    main()
