"""Reads single keys from a terminal."""

import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

_KEY = re.compile(rb"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|[\s\S]")
_BEGINNING = re.compile(rb"\x1b(\[[0-9;]*|O)?\Z")
_REST_SECONDS = 0.2
_NAMES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[3~": "delete",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
}


@contextmanager
def single_keys() -> Iterator[None]:
    """Makes the terminal deliver each key at once, without echo. Ctrl-C still sends a signal."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read_keys(seconds: float) -> list[str]:
    """Waits for a key. Returns the keys that were pressed; none if the time runs out.

    Raises EOFError if the terminal was closed.
    """
    descriptor = sys.stdin.fileno()
    if not select.select([descriptor], [], [], seconds)[0]:
        return []
    typed = _read(descriptor)
    # Over a slow connection, the rest of a key's escape sequence may arrive later.
    while _BEGINNING.search(typed) and select.select([descriptor], [], [], _REST_SECONDS)[0]:
        typed += _read(descriptor)
    return [_NAMES.get(key, key.decode(errors="replace")) for key in _KEY.findall(typed)]


def _read(descriptor: int) -> bytes:
    typed = os.read(descriptor, 1024)
    if not typed:
        raise EOFError
    return typed
