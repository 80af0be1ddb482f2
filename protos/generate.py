"""Generates gen/ from protos/. `make gen` runs it; `--check` compares instead of writing.

gen/ has the Python modules with their stubs, the descriptor set, the edge's routes, the OpenAPI
document and the bundle of the console, which is made from envoy/console. docs/errors.md, the page
of the error codes, and parts of docs/calls.md, docs/events.md, CHANGELOG.md and the clients are
generated as well.
"""

import argparse
import importlib.resources
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import a2a_routes
import console
import python_client
from call_table import call_table, filter_table
from error_page import error_page
from event_table import event_table
from event_table import module as event_types_module
from field_page import field_page
from google.rpc import code_pb2
from limits import module as limits_module
from marked_parts import replaced
from new_names import new_names, settings_in, settings_of, with_new_names
from openapi import document
from routes import edge_config
from source import Protos
from transcoder import transcoder_descriptors

PROTOS = Path(__file__).resolve().parent
GEN = PROTOS.parent / "gen"
ERROR_PAGE = PROTOS.parent / "docs" / "errors.md"
CALLS_PAGE = PROTOS.parent / "docs" / "calls.md"
FIELDS_PAGE = PROTOS.parent / "docs" / "fields.md"
EVENTS_PAGE = PROTOS.parent / "docs" / "events.md"
CHANGELOG = PROTOS.parent / "CHANGELOG.md"
SERVER = PROTOS.parent / "server"
TYPESCRIPT = PROTOS.parent / "clients" / "typescript" / "src" / "index.ts"
# What the TypeScript client does not export: `Error` would hide JavaScript's own `Error`, and the
# options of fields are only for the service.
NOT_EXPORTED = ("error", "field")
# Contains the wheel of the last release. The API is compared with the descriptor set in the wheel.
RELEASES = PROTOS.parent / "tests" / "releases"
VENDORED = PROTOS / "googleapis"
GOOGLEAPIS = (
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/type/money.proto",
)
DESCRIPTOR_SET = "evershell/edge/workspace.binpb"
# The generated files of the edge: descriptors for transcoders, routes, and the OpenAPI document.
# The files that are not generated are in envoy/evershell/edge.
TRANSCODER = "evershell/edge/transcoder.binpb"
A2A_TRANSCODER = "evershell/edge/a2a.binpb"
ROUTES = "evershell/edge/routes.json"
OPENAPI = "evershell/edge/openapi.yaml"
SLUGS = "evershell/workspace/v1/error_slugs.py"
LIMITS = "evershell/workspace/v1/field_limits.py"
EVENT_TYPES = "evershell/workspace/v1/event_types.py"
# These files tell type checkers that the packages have types.
TYPED = ("evershell/agent/py.typed", "evershell/workspace/py.typed")


def proto_files() -> list[str]:
    """The paths of our protos, relative to protos/."""
    paths = (PROTOS / "evershell").rglob("*.proto")
    return sorted(str(path.relative_to(PROTOS)) for path in paths)


def googleapis() -> dict[str, bytes]:
    """The protos in GOOGLEAPIS, from the package googleapis-common-protos, by path.

    buf reads the copies in protos/googleapis, so that the protos can be built without this package.
    """
    source = Path(code_pb2.__file__).parents[2]
    return {name: (source / name).read_bytes() for name in GOOGLEAPIS}


def write_googleapis() -> None:
    """Writes protos/googleapis."""
    shutil.rmtree(VENDORED, ignore_errors=True)
    for name, content in googleapis().items():
        path = VENDORED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def typescript_exports() -> str:
    """The lines that export the messages of the API's protos, except NOT_EXPORTED."""
    names = [Path(each).stem for each in proto_files() if each.startswith("evershell/workspace/")]
    return "".join(
        f'export * from "./gen/evershell/workspace/v1/{name}_pb.js";\n'
        for name in names
        if name not in NOT_EXPORTED
    )


def others(protos: Protos) -> dict[Path, str]:
    """The texts of the files outside gen/ that are generated from our protos, by path."""
    return {
        ERROR_PAGE: error_page(protos),
        FIELDS_PAGE: field_page(protos),
        CALLS_PAGE: replaced(CALLS_PAGE.read_text(), call_table(protos), filter_table(protos)),
        EVENTS_PAGE: replaced(EVENTS_PAGE.read_text(), event_table(protos)),
        CHANGELOG: with_new_names(
            CHANGELOG.read_text(),
            new_names(
                protos, Protos(released_descriptors()), settings_of(SERVER), released_settings()
            ),
        ),
        TYPESCRIPT: replaced(TYPESCRIPT.read_text(), typescript_exports()),
        **python_client.files(protos),
    }


def protoc(*arguments: str) -> None:
    """Runs the protoc of grpcio-tools on all protos.

    Google's protos come from googleapis-common-protos. Raises subprocess.CalledProcessError if a
    proto is not valid; protoc has then printed where.
    """
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    googleapis = Path(code_pb2.__file__).parents[2]
    includes = [f"-I{PROTOS}", f"-I{googleapis}", f"-I{well_known}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, *arguments, *proto_files()]
    # protoc finds its plugins on the PATH. If the virtual environment is not activated, its folder
    # is missing there.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(command, check=True, cwd=PROTOS, env=os.environ | {"PATH": path})


def write(out: Path) -> None:
    """Replaces the files of `out` with newly generated ones.

    If the generation fails, nothing is changed. Raises what generate raises.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # Next to `out`, because a rename works only within a file system.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        fresh, old = Path(temporary, "fresh"), Path(temporary, "old")
        generate(fresh)
        out.mkdir(exist_ok=True)
        old.mkdir()
        for path in sorted(fresh.iterdir()):
            if (current := out / path.name).exists():
                current.rename(old / path.name)
            path.rename(current)


def generate(out: Path) -> None:
    """Generates all files of gen/ into `out`, which is empty or does not exist.

    Raises BuildError, and subprocess.CalledProcessError if a proto is not valid.
    """
    (out / DESCRIPTOR_SET).parent.mkdir(parents=True)
    protoc(
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    )
    # buf and the documents need the source positions. The edge needs all imported files. A program
    # that decodes rich statuses needs error_details.proto, which no proto here imports.
    descriptor_set = out / DESCRIPTOR_SET
    details = "google/rpc/error_details.proto"
    protoc(
        f"--descriptor_set_out={descriptor_set}",
        "--include_imports",
        "--include_source_info",
        details,
    )
    (out / TRANSCODER).write_bytes(transcoder_descriptors(descriptor_set.read_bytes()))
    protos = Protos(descriptor_set.read_bytes())
    (out / SLUGS).write_text(slugs(protos))
    (out / LIMITS).write_text(limits_module(protos))
    (out / EVENT_TYPES).write_text(event_types_module(protos))
    for name in TYPED:
        (out / name).touch()
    (out / A2A_TRANSCODER).write_bytes(a2a_routes.descriptors())
    first = protos.first_methods()
    config = edge_config(
        protos,
        a2a_routes.routes(first),
        a2a_routes.grpc_size_limits(first),
        a2a_routes.grpc_classes(first),
    )
    (out / ROUTES).write_text(json.dumps(config, indent=2) + "\n")
    (out / OPENAPI).write_text(document(protos))
    console.generate(out / console.BUNDLE, committed=GEN / console.BUNDLE)


def slugs(protos: Protos) -> str:
    """A Python module with the type of the error slugs that the service returns."""
    values = "\n".join(f'    "{rule.slug}",' for rule in protos.rules() if not rule.edge_only)
    return (
        '"""The error slugs of error.proto that the service itself returns."""\n\n'
        "from typing import Literal, TypeAlias\n\n"
        f"Slug: TypeAlias = Literal[\n{values}\n]\n"
    )


def generated_files(directory: Path) -> dict[str, bytes]:
    """The contents of all files in a directory, by relative path. Leaves out __pycache__."""
    paths = [
        path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def check() -> list[str]:
    """Compares all generated files with a fresh generation, and the API with the last release.

    Returns the problems as lines to print: files that have drifted, lint errors of buf, and changes
    that break callers.
    """
    with tempfile.TemporaryDirectory() as temporary:
        fresh_directory = Path(temporary)
        generate(fresh_directory)
        fresh, committed = generated_files(fresh_directory), generated_files(GEN)
        problems = [
            f"gen/{name} is missing; run `make gen`"
            for name in sorted(fresh.keys() - committed.keys())
        ]
        problems += [
            f"gen/{name} is left over; run `make gen`"
            for name in sorted(committed.keys() - fresh.keys())
        ]
        both = sorted(fresh.keys() & committed.keys())
        problems += [
            f"gen/{name} has drifted; run `make gen`"
            for name in both
            if fresh[name] != committed[name]
        ]
        if generated_files(VENDORED) != googleapis():
            problems.append("protos/googleapis has drifted; run `make gen`")
        problems += [
            f"{path.relative_to(PROTOS.parent)} has drifted; run `make gen`"
            for path, text in others(Protos(fresh[DESCRIPTOR_SET])).items()
            if not path.exists() or path.read_text() != text
        ]
        image = str(fresh_directory / DESCRIPTOR_SET)
        problems += buf("lint", image, "--path", "evershell")
        released = Path(temporary, "released.binpb")
        released.write_bytes(released_descriptors())
        problems += buf("breaking", image, "--against", str(released))
        problems += changed_codes(Protos(released_descriptors()), Protos(fresh[DESCRIPTOR_SET]))
    return problems


def changed_codes(released: Protos, current: Protos) -> list[str]:
    """The slugs of a release whose gRPC code or HTTP status is now different, as lines to print."""
    codes = current.codes()
    return [
        f"ErrorCode.{slug} has other codes than in the last release"
        for slug, both in released.codes().items()
        if codes.get(slug) != both
    ]


def released_descriptors() -> bytes:
    """The descriptor set of the last release."""
    with released_wheel() as archive:
        return archive.read(DESCRIPTOR_SET)


def released_wheel() -> zipfile.ZipFile:
    """The wheel of the last release."""
    (wheel,) = RELEASES.glob("*.whl")
    return zipfile.ZipFile(wheel)


def released_settings() -> set[str]:
    """The names of the settings of the last release."""
    found: set[str] = set()
    with released_wheel() as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                found |= settings_in(archive.read(name).decode()).keys()
    return found


def buf(command: str, image: str, *arguments: str) -> list[str]:
    """Runs buf on a descriptor set. Returns its complaints as lines to print."""
    program = Path(sys.executable).parent / "buf"
    ran = subprocess.run(
        [str(program), command, image, "--config", str(PROTOS / "buf.yaml"), *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    return (
        [f"buf {command}: {line}" for line in (ran.stdout + ran.stderr).splitlines()]
        if ran.returncode
        else []
    )


def main() -> None:
    """Writes all generated files. With --check, prints the problems and exits with 1 if any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=GEN)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; compare with gen/ and lint the protos"
    )
    arguments = parser.parse_args()
    if not arguments.check:
        try:
            write(arguments.out.resolve())
            write_googleapis()
            for path, text in others(Protos((arguments.out / DESCRIPTOR_SET).read_bytes())).items():
                path.write_text(text)
        except subprocess.CalledProcessError:
            # protoc has printed the reason.
            sys.exit("A proto is not valid. Nothing was changed.")
    elif problems := check():
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    try:
        main()
    except console.BuildError as error:
        sys.exit(f"{error}\nNothing was changed.")
