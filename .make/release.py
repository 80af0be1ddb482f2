"""Builds the files of a release from a clean checkout.

Usage: release.py VERSION [--key KEY] [--base IMAGE] [--source URL] [--platform PLATFORM...]

Writes the files to dist/VERSION. They depend only on the commit and the arguments, so a second
run writes the same bytes. KEY is a private SSH key, which signs the checksums. With --base, podman
builds an image on top of IMAGE for each PLATFORM, by default for the platform of this machine. URL
is the address at which the source is available.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from email.parser import HeaderParser
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
# uv installs this tool at its first use. The tool is not in the environment, which has only what
# the service and its tests need.
SBOM_TOOL = [BIN / "uv", "tool", "run", "--quiet", "--from", "cyclonedx-bom==7.5.0", "cyclonedx-py"]


class ReleaseError(Exception):
    """The release cannot be built. The message is human-readable."""


def main() -> None:
    """Builds the release that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--key", type=Path)
    parser.add_argument("--base")
    parser.add_argument("--source", default="")
    parser.add_argument("--platform", nargs="*", default=[f"linux/{_machine()}"])
    options = parser.parse_args()
    try:
        notes = _notes(options.version)
        out = ROOT / "dist" / options.version
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / "NOTES.md").write_text(notes)
        _build_packages(out)
        _compare_baseline(out, options.version)
        _describe_packages(out, options.version)
        _package_chart(out, options.version)
        for platform in options.platform if options.base else ():
            _build_image(out, options.version, options.base, platform, options.source)
        _sign(out, options.key)
    except ReleaseError as error:
        sys.exit(str(error))
    print("\n".join(f"{each.stat().st_size:>11,}  {each.name}" for each in sorted(out.iterdir())))


def _notes(version: str) -> str:
    """The changelog's section about the version.

    Raises ReleaseError if there is no such section, or if the checkout has another version or
    changes that are not committed.
    """
    found = _run(BIN / "hatchling", "version").strip()
    if found != version:
        raise ReleaseError(f"The checkout has version {found}, not {version}. Run `make cut`.")
    if _run("git", "status", "--porcelain").strip():
        raise ReleaseError("The checkout has changes that are not committed.")
    section = rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## \[|\Z)"
    found = re.search(section, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE | re.DOTALL)
    if found is None:
        raise ReleaseError(f"CHANGELOG.md has no section [{version}].")
    return f"# Evershell {version}\n\n{found[1].strip()}\n"


def _build_packages(out: Path) -> None:
    """Builds wheel and sdist twice. Raises ReleaseError unless both builds are equal."""
    with tempfile.TemporaryDirectory() as again:
        for folder in (out, Path(again)):
            _run(BIN / "hatchling", "build", "-d", folder)
        for built in Path(again).iterdir():
            if built.read_bytes() != (out / built.name).read_bytes():
                raise ReleaseError(f"Two builds of {built.name} differ.")


def _compare_baseline(out: Path, version: str) -> None:
    """Raises ReleaseError unless tests/releases has this wheel.

    The tests of later versions use the wheel.
    """
    name = f"evershell-{version}-py3-none-any.whl"
    baseline = ROOT / "tests" / "releases" / name
    if not baseline.exists() or baseline.read_bytes() != (out / name).read_bytes():
        raise ReleaseError(f"{baseline} is not the wheel of this checkout. Run `make cut`.")


def _describe_packages(out: Path, version: str) -> None:
    """Writes the SBOM (CycloneDX) of the locked packages, and their licenses."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "env", "bin", "python")
        _run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, python.parents[1])
        lock = ["--require-hashes", "-r", ROOT / "requirements.txt"]
        # Sets TMPDIR, because uv leaves lock files in that folder when it builds packages.
        _run(BIN / "uv", "pip", "install", "--quiet", "--python", python, *lock, TMPDIR=folder)
        form = [
            "--output-reproducible",
            "--of",
            "JSON",
            "-o",
            out / f"evershell-{version}.cdx.json",
        ]
        # Writes the version into a copy, because SBOM_TOOL cannot read a dynamic version.
        project = Path(folder, "pyproject.toml")
        static = (ROOT / "pyproject.toml").read_text()
        project.write_text(static.replace('dynamic = ["version"]', f'version = "{version}"'))
        _run(*SBOM_TOOL, "environment", python, "--pyproject", project, *form)
        # Installs the wheel, too, for its own license and the licenses of the console's packages.
        (wheel,) = out.glob("*.whl")
        _run(BIN / "uv", "pip", "install", "--quiet", "--no-deps", "--python", python, wheel)
        (out / "LICENSES.txt").write_text(_run(python, ROOT / ".make" / "licenses.py"))


def _build_image(out: Path, version: str, base: str, platform: str, source_url: str) -> None:
    tag = f"evershell:{version}"
    architecture = platform.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as context:
        # The archive contains only what is committed.
        _run("git", "archive", "--output", f"{context}/source.tar", "HEAD")
        with tarfile.open(f"{context}/source.tar") as source:
            source.extractall(context, filter="data")
        Path(context, "source.tar").unlink()
        facts = [("version", version), ("revision", _run("git", "rev-parse", "HEAD").strip())]
        facts += [("source", source_url)] if source_url else []
        build = ["--platform", platform, "--timestamp", _epoch(), "--build-arg", f"BASE={base}"]
        labels = [f"--label=org.opencontainers.image.{name}={value}" for name, value in facts]
        file = ["--file", f"{context}/deploy/Containerfile", "--tag", tag, context]
        _run("podman", "build", "--quiet", "--no-cache", *build, *labels, *file)
    with tempfile.TemporaryDirectory() as folder:
        _run("podman", "save", "--quiet", "--format", "oci-dir", "--output", f"{folder}/image", tag)
        # Writes the archive without Podman, which would store the times of this run in it.
        with tarfile.open(out / f"evershell-{version}-{architecture}.oci.tar", "w") as archive:
            for path in sorted(Path(folder, "image").rglob("*")):
                name = path.relative_to(f"{folder}/image")
                archive.add(path, name, recursive=False, filter=_without_time)
        _describe_image(out, version, architecture, _dpkg_status(tag, Path(folder, "status")))


def _dpkg_status(tag: str, file: Path) -> str:
    """The Debian packages in the image, as dpkg describes them."""
    container = _run("podman", "create", tag).strip()
    _run("podman", "cp", f"{container}:/var/lib/dpkg/status", file)
    _run("podman", "rm", container)
    return file.read_text()


def _describe_image(out: Path, version: str, architecture: str, dpkg_status: str) -> None:
    """Writes the SBOM (CycloneDX) of the image, with its Python packages and Debian packages."""
    sbom = json.loads((out / f"evershell-{version}.cdx.json").read_text())
    sbom["metadata"]["component"]["type"] = "container"
    for paragraph in filter(None, dpkg_status.split("\n\n")):
        package = HeaderParser().parsestr(paragraph.strip())
        if not package["Status"].endswith(" installed"):
            continue
        name, number = package["Package"], package["Version"]
        address = f"pkg:deb/debian/{quote(name)}@{quote(number)}?arch={package['Architecture']}"
        component = {"type": "library", "name": name, "version": number, "purl": address}
        sbom["components"].append(component | {"bom-ref": address})
    text = json.dumps(sbom, indent=2, sort_keys=True)
    (out / f"evershell-{version}-{architecture}.oci.cdx.json").write_text(f"{text}\n")


def _without_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = int(_epoch())
    return member


def _package_chart(out: Path, version: str) -> None:
    """Writes the archive of the chart. `helm package` would store the current time in it."""
    target = out / f"evershell-{version}.tgz"
    with (
        target.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        # `dereference` follows the symbolic link to the alerts and the dashboard.
        tarfile.open(fileobj=packed, mode="w", dereference=True) as archive,
    ):
        archive.add(ROOT / "deploy" / "chart", "evershell", filter=_without_owner)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return _without_time(member)


def _sign(out: Path, key: Path | None) -> None:
    """Writes the checksums of all files. Signs them if there is a key."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(out.iterdir())
    ]
    sums = out / "SHA256SUMS"
    sums.write_text("".join(lines))
    if key is None:
        print("not signed: there is no --key", file=sys.stderr)
    else:
        _run("ssh-keygen", "-q", "-Y", "sign", "-n", "evershell", "-f", key, sums)


def _epoch() -> str:
    return _run("git", "log", "-1", "--format=%ct").strip()


def _machine() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def _run(*command: str | Path, **variables: str) -> str:
    """Runs a command in the checkout. Raises ReleaseError with its output if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise ReleaseError(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
