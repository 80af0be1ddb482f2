"""Runs Python programs as if only some extras of the distribution were installed."""

import re
import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement

# The packages that callers need.
PUBLIC = ("evershell.agent", "evershell.cli", "evershell.client", "evershell.workspace")
# A program that imports all modules of the packages in its arguments, and prints their names.
IMPORT = """
import importlib, pathlib, sys

for package in sys.argv[1:]:
    for folder in map(pathlib.Path, importlib.import_module(package).__path__):
        for path in folder.rglob("*.py"):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            importlib.import_module(name.removesuffix(".__init__"))
            print(name)
"""
_HIDE = """
import importlib.machinery, sys

hidden = set(sys.argv.pop(1).split(","))
find_spec = importlib.machinery.PathFinder.find_spec

def find_visible_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find_spec(name, path, target)

importlib.machinery.PathFinder.find_spec = find_visible_spec
"""


def run(program: str, *arguments: str, extras: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs a program. It can import only what `pip install 'evershell[extras]'` installs."""
    kept = distributions("evershell", extras)
    hidden = [
        module
        for module, names in metadata.packages_distributions().items()
        if kept.isdisjoint(map(_normalised, names))
    ]
    assert "pytest" in hidden
    return subprocess.run(
        [sys.executable, "-c", _HIDE + program, ",".join(hidden), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def distributions(name: str, extras: str = "") -> set[str]:
    """The names of all distributions that are installed with this one."""
    found = set()
    missing = [(_normalised(name), extra) for extra in ("", *filter(None, extras.split(",")))]
    while missing:
        each = missing.pop()
        if each in found:
            continue
        found.add(each)
        for text in metadata.requires(each[0]) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": each[1]}):
                missing += [(_normalised(needed.name), extra) for extra in ("", *needed.extras)]
    return {name for name, _ in found}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
