"""Exits with a short message if this Python is too old or has no venv module.

Without this check, pip would fail with a long error. This file must also run on Python 2.7, so it
has no f-strings and no annotations.
"""

import importlib
import sys


def main(command):
    """Exits with a message if this Python, started as `command`, cannot be used."""
    if sys.version_info < (3, 11):
        version = ".".join(str(part) for part in sys.version_info[:3])
        sys.exit(
            "%s is Python %s; 3.11 or newer is needed: make PYTHON=python3.12 ..."
            % (command, version)
        )
    try:
        importlib.import_module("ensurepip")
        importlib.import_module("venv")
    except ImportError:
        sys.exit(
            "%s has no venv module; install it (Debian, Ubuntu: apt install python3-venv)."
            % command
        )


main(sys.argv[1])
