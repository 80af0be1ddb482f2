"""What a stranger without a credential can write into the logs of a stack with sign-in.

FUZZ_SECONDS sets the time for finding new kinds of requests, FUZZ_SEED the seed, and FUZZ_REPEATS
how often one request of each kind is repeated.
"""

import base64
import json
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from tests.support.edge.clients import is_whole
from tests.support.stack import Stack
from tests.wire.edge.long import test_fuzz as fuzz

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
REPEATS = int(os.environ.get("FUZZ_REPEATS", "2000"))
# The number of requests at once. It is large, because most requests only wait for the rest of an
# answer.
CONCURRENCY = 256
# A call may add this many bytes to the logs on average. On a slow machine, it may add more, up to
# the limit on lines per second.
BYTES_OF_A_CALL = 50
LINES_A_SECOND, LINE_BYTES = 20, 1_000
# The logs are complete if they do not grow for this time: the edge and the supervisor buffer a line
# for less time. The test waits for at most SETTLING_LOOKS such periods.
SETTLED_SECONDS, SETTLING_LOOKS = 1.5, 40
ANSWER_SECONDS = 10.0
QUIET_SECONDS = 0.3
# A forged line looks like a log line of the service, but contains the stranger's mark.
MARK = "of-a-stranger"
FORGED = json.dumps({"event": "rpc_completed", "program": MARK})
STATE = base64.urlsafe_b64encode(FORGED.encode()).decode().rstrip("=")
SIGN_IN = [
    f"GET /console/signed-in?code=c&state={STATE} HTTP/1.1",
    f"GET /console/signed-in?error={MARK}&state=%0a{MARK}%1b HTTP/1.1",
    "GET /console/sign-in HTTP/1.1",
    "GET /console/sign-out HTTP/1.1",
    f"GET /console/sign-in?url=https://{MARK}/ HTTP/1.1",
    "GET /v1/workspaces/ws_1 HTTP/1.1",
]
COOKIES = ["evershell-session=old", "evershell-session=\x1b[0m; evershell-expires=9", FORGED]


def _seeds() -> list[bytes]:
    heads = [
        f"{line}\r\nhost: x\r\nconnection: close\r\ncookie: {cookie}\r\nx-bin: !!!\r\n\r\n".encode()
        for line in SIGN_IN
        for cookie in COOKIES
    ]
    return [*heads, *(re.sub(rb"(?im)^authorization:.*\r\n", b"", each) for each in fuzz.SEEDS)]


def requests() -> Iterator[bytes]:
    """Yields the seeds, and then mutations of them without end."""
    chance, seeds = random.Random(SEED), _seeds()
    yield from seeds
    while True:
        yield fuzz.mutated(chance, chance.choice(seeds))


@pytest.fixture(scope="module")
def open_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with sign-in. No test signs in, so the service never calls the identity provider."""
    folder = tmp_path_factory.mktemp("strangers")
    secret = folder / "secret"
    secret.write_text("a secret")
    stack = Stack(
        folder / "state",
        OIDC_CLIENT_ID="console",
        OIDC_CLIENT_SECRET_FILE=str(secret),
        OIDC_AUTHORIZATION_URL="http://127.0.0.1:9/auth",
        OIDC_TOKEN_URL="http://127.0.0.1:9/token",
    )
    with stack.started():
        yield stack


class Strangers:
    """Sends requests to the ports of the edge, and reads the logs."""

    def __init__(self, stack: Stack) -> None:
        self._addresses = [
            ("127.0.0.1", int(stack.ready[name].rpartition(":")[2]))
            for name in ("rest_url", "grpc_addr")
        ]
        self._logs = stack.state_dir / "logs"

    def send(self, sent: bytes) -> bytes:
        """Sends a request. Returns the beginning of the answer; empty if there is none."""
        # The second port speaks HTTP/2.
        address = self._addresses[sent.startswith(fuzz.PREFACE)]
        received = b""
        try:
            with socket.create_connection(address, ANSWER_SECONDS) as connection:
                connection.sendall(sent)
                connection.settimeout(QUIET_SECONDS)
                while not is_whole(received):
                    part = connection.recv(65536)
                    if not part:
                        break
                    received += part
        except OSError:
            pass
        return received

    def files(self) -> list[Path]:
        """The log files, including rotated ones."""
        return [each for each in self._logs.rglob("*") if each.is_file()]

    def settled_size(self) -> int:
        """Returns the size of all logs in bytes, once they no longer grow."""
        size = -1
        for _ in range(SETTLING_LOOKS):
            now = sum(each.stat().st_size for each in self.files())
            if now == size:
                return size
            size = now
            time.sleep(SETTLED_SECONDS)
        raise AssertionError("the logs grow although nobody calls")


def kind(received: bytes) -> tuple[bytes, ...]:
    """The kind of an answer: its status, its slug or reason, and the names of its headers."""
    head, _, body = received.partition(b"\r\n\r\n")
    slug = re.search(rb'"(?:code|reason|field)": ?"?(\w+)', body)
    names = re.findall(rb"(?m)^([a-z-]+):", head)
    return (
        head[9:12],
        slug.group(1) if slug else body[:20],
        *sorted(set(names) - {b"content-length"}),
    )


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_stranger_writes_little_into_the_logs_and_forges_no_line(open_stack: Stack) -> None:
    strangers = Strangers(open_stack)
    found: dict[tuple[bytes, ...], bytes] = {}
    sent, count, ends = requests(), 0, time.monotonic() + SECONDS
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        while time.monotonic() < ends or count < len(_seeds()):
            batch = list(islice(sent, CONCURRENCY * 8))
            for request, answer in zip(batch, pool.map(strangers.send, batch), strict=True):
                assert not re.match(rb"HTTP/1.1 5(?!03)\d\d", answer), (request, answer)
                found.setdefault(kind(answer), request)
            count += len(batch)
        written, before = {}, strangers.settled_size()
        for answered, request in found.items():
            began = time.monotonic()
            for _ in pool.map(strangers.send, [request] * REPEATS):
                pass
            limit = LINES_A_SECOND * (2 + time.monotonic() - began) * LINE_BYTES
            after = strangers.settled_size()
            written[answered], before = after - before, after
            assert written[answered] <= max(BYTES_OF_A_CALL * REPEATS, limit), (answered, request)
    most = sorted(written.items(), key=lambda item: item[1], reverse=True)[:5]
    print(f"seed {SEED}: {count} requests of {len(found)} kinds, {REPEATS} repeats, most: {most}")
    for file in strangers.files():
        if file.name.startswith("postgres"):
            continue
        # The last line may be incomplete.
        for line in file.read_bytes().split(b"\n")[:-1]:
            facts = json.loads(line)
            assert facts.get("program") != MARK and b"\x1b" not in line, (file.name, line)
