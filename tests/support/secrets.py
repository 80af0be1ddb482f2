"""Searches for credentials in everything that stacks leave behind.

Each stack of a test run is searched when it stops: its output, its logs and the files of its state
folder. The run fails if a credential was found. tests/faults/long/secrets looks at everything else
that a stack leaves.
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

# A fragment is long enough to be in no other text by accident, and short enough to find a
# credential that was cut off.
_FRAGMENT = 20
# Any credential, even one that no test knows.
_ANY = {
    "an API key": re.compile(rb"sk_[A-Za-z0-9_-]{40,}"),
    "a runtime token": re.compile(rb"[A-Za-z0-9_-]{4,}\.[0-9]{1,19}\.[0-9]{6,12}\.[0-9a-f]{64}"),
    "a JWT": re.compile(rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a private JWK": re.compile(rb'"d": ?"[A-Za-z0-9_-]{40,}"'),
}
# The files of a state folder that hold credentials. Only their owner can read them.
HOLDERS = ("ready.json", "demo.env", "demo.json", "control-plane.jwk")
# The files of PostgreSQL hold the texts of callers.
_DATABASE = "pg"
_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Secret:
    """A credential, by a name that says what it is."""

    name: str
    value: str

    def fragments(self) -> Iterator[bytes]:
        """The texts that would reveal the credential: parts of it, and their encodings."""
        for part in self._parts():
            text = part.encode()
            for piece in (text[:_FRAGMENT], text[-_FRAGMENT:]):
                yield piece
                yield piece.hex().encode()
            for offset in range(3):
                # base64 encodes a text in three ways, depending on its offset. The ends depend on
                # the surroundings.
                yield b64encode(bytes(offset) + text)[4:-4][:_FRAGMENT]

    def _parts(self) -> Iterable[str]:
        if self.value.startswith("eyJ"):
            # The header, and the start of the claims, are the same in many tokens.
            _, claims, signature = self.value.split(".")
            return (claims[-_FRAGMENT:], signature) if signature else (claims[-_FRAGMENT:],)
        return (self.value.removeprefix("sk_"),)


class Secrets:
    """Known credentials, and the patterns of all others."""

    def __init__(self, known: Iterable[Secret]) -> None:
        self._fragments = {
            fragment: secret.name for secret in known for fragment in secret.fragments()
        }

    def found(self, data: bytes) -> set[str]:
        """The names of the credentials that the data holds, whole or in part."""
        names = {name for fragment, name in self._fragments.items() if fragment in data}
        for name, pattern in _ANY.items():
            matches = pattern.findall(data)
            if any(not self._is_known(match) for match in matches):
                names.add(name)
        return names

    def _is_known(self, credential: bytes) -> bool:
        return any(fragment in credential for fragment in self._fragments)


def issued(ready: Mapping[str, Any], state_dir: Path) -> list[Secret]:
    """The credentials that a stack has issued: its demo's credentials, and its keys."""
    tokens: Mapping[str, str] = ready["demo"]["tokens"] if ready else {}
    found = [Secret(f"demo {name}", token) for name, token in tokens.items()]
    with suppress(FileNotFoundError):
        key = json.loads((state_dir / "control-plane.jwk").read_text())
        # While the key is rotated, there are two.
        found += [Secret("the signing key", each["d"]) for each in key.get("keys", [key])]
        kept = json.loads((state_dir / "demo.json").read_text())
        found.append(Secret("the key of the demo's sessions", kept["session key"]["d"]))
    return found


def files_of(state_dir: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a state folder, except the database's, and the output of its stack."""
    output = state_dir.with_name(state_dir.name + ".output")
    for path in (output, *sorted(state_dir.rglob("*"))):
        # A file may be removed meanwhile. Tools make pipes and links.
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
    """The credentials that the files of a stack should not hold."""
    secrets = Secrets(issued(ready, state_dir))
    return [
        f"{path}: {name}"
        for path, data in files_of(state_dir)
        if Path(path).name not in HOLDERS
        for name in sorted(secrets.found(data))
    ]


# The findings in the stacks of this test run, and how often a stack was searched.
leaks: list[str] = []
searched: list[str] = []


def search(ready: Mapping[str, Any], state_dir: Path) -> None:
    """Searches a stack that has stopped. A finding fails the test run at its end."""
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
