"""A copy of the checkout, in which a test replaces parts of files."""

import shutil
from pathlib import Path
from typing import NamedTuple

from tests.support.stack import ROOT

# The files and folders that are not copied. Compiled modules are copied, so that programs need not
# compile them when they start. The last pattern matches compiled modules that are being written.
_LEFT_OUT = (".git", ".venv", ".state", ".hypothesis", "site", "dist", "node_modules", "*.pyc.*")


class Edit(NamedTuple):
    """A text that occurs exactly once in a file of the checkout, and its replacement."""

    path: str
    text: str
    replacement: str


def copied_checkout(folder: Path, *edits: Edit) -> Path:
    """Copies the checkout, and applies the edits to the copy.

    The copy uses this checkout's environment. Returns the folder of the copy.
    """
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    for edit in edits:
        apply(edit, folder)
    return folder


def apply(edit: Edit, checkout: Path) -> None:
    """Replaces the text in the checkout. Fails unless the text occurs exactly once."""
    path = checkout / edit.path
    source = path.read_text()
    assert source.count(edit.text) == 1, f"{edit.path} has not exactly one {edit.text!r}"
    path.write_text(source.replace(edit.text, edit.replacement))
