"""Prepares the checkout for the commit of the release VERSION.

Usage: cut.py VERSION

Sets the version, dates the section of the changelog, and builds the wheel with which later versions
are tested. Can be run again after a change.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = ROOT / "CHANGELOG.md"
# Matches the first and the last line of the part that `make gen` writes: a list of new names.
MARK = "^<!-- (begin|end): written by `make gen` -->\n"
_NPM = r'"name": "@evershell/client",\s+"version": "'
PYTHON = "client/evershell/version.py"
# The files that contain the version, with the text in front of it.
VERSIONS = {
    PYTHON: r'^VERSION = "',
    "clients/typescript/package.json": _NPM,
    "clients/typescript/package-lock.json": _NPM,
}


def main() -> None:
    """Cuts the release that the argument names."""
    version = "".join(sys.argv[1:])
    (current,) = re.findall(r'^VERSION = "(.*)"', (ROOT / PYTHON).read_text(), re.MULTILINE)
    # Checks the version before any file is changed.
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or _numbers(version) < _numbers(current):
        sys.exit(f"VERSION is {version!r}. It must be three numbers, such as {current} or later.")
    heading = f"## [{version}]"
    if heading not in CHANGELOG.read_text():
        today = time.strftime("%Y-%m-%d")
        _replace(CHANGELOG, r"^## \[Unreleased\]", f"{heading} - {today}")
    # The list of new names now belongs to this release. Removes the two lines around the list, so
    # that `make gen` no longer changes it.
    CHANGELOG.write_text(re.sub(MARK, "", CHANGELOG.read_text(), flags=re.MULTILINE))
    for name, before in VERSIONS.items():
        _replace(ROOT / name, rf'({before})[^"]+', rf"\g<1>{version}")
    wheels = ROOT / "tests" / "releases"
    for wheel in wheels.glob("*.whl"):
        wheel.unlink()
    build = [Path(sys.executable).parent / "hatchling", "build", "-t", "wheel", "-d", wheels]
    subprocess.run(build, cwd=ROOT, check=True)


def _numbers(version: str) -> list[int]:
    return [int(each) for each in version.split(".")]


def _replace(path: Path, pattern: str, replacement: str) -> None:
    """Replaces the pattern in a file. Ends the program if the file does not have the pattern."""
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    if not count:
        sys.exit(f"{path.relative_to(ROOT)} has no {pattern}")
    path.write_text(text)


if __name__ == "__main__":
    main()
