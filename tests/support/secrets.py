"""Searches for credentials in what stacks leave behind.

When a stack of a test run stops, its output, its logs and the files of its state folder are
searched. The run fails if a credential is found. tests/faults/long/secrets searches everything else
that a stack leaves behind.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# The number of characters in a fragment. A shorter fragment might occur in other texts by accident;
# a longer one would not be found in a credential that is cut off.
_FRAGMENT = 20
# Patterns that match credentials of each kind, even credentials that the tests do not know.
_ANY = {
    "an API key": re.compile(rb"sk_[A-Za-z0-9_-]{40,}"),
    "a runtime token": re.compile(rb"[A-Za-z0-9_-]{4,}\.[0-9]{1,19}\.[0-9]{6,12}\.[0-9a-f]{64}"),
    "a JWT": re.compile(rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a private JWK": re.compile(rb'"d": ?"[A-Za-z0-9_-]{40,}"'),
}
# The files of a state folder that may hold credentials. Only the owner can read them.
HOLDERS = ("ready.json", "demo.env", "demo.json", "control-plane.jwk")
# The folder of PostgreSQL is not searched, because it contains text from callers.
_DATABASE = "pg"
_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Secret:
    """A credential, with a name that says what it is."""

    name: str
    value: str

    def fragments(self) -> Iterator[bytes]:
        """Yields texts that would reveal the credential: parts of it, plain and encoded."""
        for part in self._parts():
            text = part.encode()
            for piece in (text[:_FRAGMENT], text[-_FRAGMENT:]):
                yield piece
                yield piece.hex().encode()
            for offset in range(3):
                # Base64 encodes a text in one of three ways, depending on its offset. The ends of
                # the result also depend on the surrounding text, so they are left out.
                yield b64encode(bytes(offset) + text)[4:-4][:_FRAGMENT]

    def _parts(self) -> Iterable[str]:
        if self.value.startswith("eyJ"):
            # Leaves out the header and the beginning of the claims, which many tokens share.
            _, claims, signature = self.value.split(".")
            return (claims[-_FRAGMENT:], signature) if signature else (claims[-_FRAGMENT:],)
        return (self.value.removeprefix("sk_"),)


class Secrets:
    """Finds known credentials, and texts that look like other credentials."""

    def __init__(self, known: Iterable[Secret]) -> None:
        self._fragments = {
            fragment: secret.name for secret in known for fragment in secret.fragments()
        }

    def found(self, data: bytes) -> set[str]:
        """Returns the names of the credentials that the data contains, whole or in part."""
        names = {name for fragment, name in self._fragments.items() if fragment in data}
        for name, pattern in _ANY.items():
            matches = pattern.findall(data)
            if any(not self._is_known(match) for match in matches):
                names.add(name)
        return names

    def _is_known(self, credential: bytes) -> bool:
        return any(fragment in credential for fragment in self._fragments)


def issued(ready: Mapping[str, Any], state_dir: Path) -> list[Secret]:
    """Returns the credentials of a stack: its demo's credentials and its signing keys."""
    tokens: Mapping[str, str] = ready["demo"]["tokens"] if ready else {}
    found = [Secret(f"demo {name}", token) for name, token in tokens.items()]
    with suppress(FileNotFoundError):
        key = json.loads((state_dir / "control-plane.jwk").read_text())
        # During a rotation, there are two keys.
        found += [Secret("the signing key", each["d"]) for each in key.get("keys", [key])]
        kept = json.loads((state_dir / "demo.json").read_text())
        found.append(Secret("the key of the demo's sessions", kept["session key"]["d"]))
    return found


def files_of(state_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Yields a stack's output and the files of its state folder, without the database's files."""
    output = state_dir.with_name(state_dir.name + ".output")
    for path in (output, *sorted(state_dir.rglob("*"))):
        # Ignores files that were just removed. Leaves out pipes and links, which tools may have
        # made.
        with suppress(OSError):
            is_plain = path.is_file() and not path.is_symlink()
            relative = path.relative_to(state_dir.parent)
            if (
                is_plain
                and _DATABASE not in relative.parts[:2]
                and path.stat().st_size < _MAX_BYTES
            ):
                yield str(relative), path.read_bytes()


def leaks_of(ready: Mapping[str, Any], state_dir: Path) -> list[str]:
    """Returns the credentials that are in files of a stack that may not hold credentials."""
    secrets = Secrets(issued(ready, state_dir))
    return [
        f"{path}: {name}"
        for path, data in files_of(state_dir)
        if Path(path).name not in HOLDERS
        for name in sorted(secrets.found(data))
    ]


# The credentials that were found in this test run, and the stacks that were searched.
leaks: list[str] = []
searched: list[str] = []


def search(ready: Mapping[str, Any], state_dir: Path) -> None:
    """Searches the files of a stack that has stopped.

    If it finds a credential, the whole test run fails at its end.
    """
    searched.append(str(state_dir))
    leaks.extend(leak for leak in leaks_of(ready, state_dir) if leak not in leaks)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if leaks and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if leaks:
        terminalreporter.section("credentials in files", red=True)
        for line in leaks:
            terminalreporter.line(line, red=True)
    elif searched:
        terminalreporter.line(f"{len(searched)} stops of stacks searched: no credential")
