"""A working copy in which a test has replaced texts of the server."""

import shutil
from pathlib import Path

from tests.support.stack import ROOT

_SERVER = Path("server/evershell")

# A file of `server/evershell`, a text in it, and what replaces the text.
Edit = tuple[str, str, str]


def changed_checkout(folder: Path, *edits: Edit) -> Path:
    """Makes a working copy, which uses the environment of this one. Returns the folder.

    Fails if a text is not there exactly once.
    """
    # With the compiled modules, or each program would compile all of them at its start. The last
    # pattern is that of a module that is just being stored.
    shutil.copytree(ROOT / _SERVER, folder / _SERVER, ignore=shutil.ignore_patterns("*.pyc.*"))
    for name, text, replacement in edits:
        path = folder / _SERVER / name
        source = path.read_text()
        assert source.count(text) == 1, f"{name} has not exactly one {text!r}"
        path.write_text(source.replace(text, replacement))
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder
