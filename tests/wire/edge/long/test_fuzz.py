"""The edge answers random requests with a success, the error envelope, or an error of A2A.

FUZZ_SECONDS sets the duration, FUZZ_SEED the seed.
"""

import contextlib
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tests.support.edge import a2a_cases
from tests.support.edge.answers import check
from tests.support.edge.cases import CASES, RAW_CASES
from tests.support.edge.clients import Request, is_whole, parse
from tests.support.edge.running_edge import RunningEdge
from tests.support.edge.stub import Stub

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# How long to wait for an answer. The edge does not answer a request that seems incomplete to it.
QUIET_SECONDS = 0.5
# How long to wait for the rest of an answer that has begun.
REST_SECONDS = 30.0
# Enough requests for answers of every kind, even on a slow machine.
MIN_REQUESTS = 300
CONCURRENCY = 16
# Statuses of requests that the edge could not parse.
UNPARSED = (400, 426, 431)
NOTHING, OUTSIDE = "nothing", "outside"
# The edge answers the preface of HTTP/2 with HTTP/2 frames, which the test does not parse.
PREFACE = b"PRI *"


def as_bytes(sent: Request | bytes) -> bytes:
    """A request from the tables as bytes, with `connection: close`. Bytes stay as they are."""
    if isinstance(sent, bytes):
        return sent
    body = sent.body or b""
    lines = [f"{sent.method} {sent.path} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"{name}: {value}" for name, value in sent.headers.items()]
    lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


SEEDS = [
    sent
    for sent in (
        *(as_bytes(case.sent) for case in (*CASES, *RAW_CASES) if case.edge == "edge"),
        *(as_bytes(case.sent) for case in a2a_cases.SUCCESSES),
        *(as_bytes(sent) for sent, *_ in a2a_cases.REFUSED),
    )
    if len(sent) < 10_000 and b"page_size=200" not in sent
]


def test_every_request_gets_a_success_or_the_envelope(edge: RunningEdge, stub: Stub) -> None:
    stub.release.set()
    verdicts: Counter[str] = Counter()
    outside: list[tuple[bytes, str]] = []
    ends = time.monotonic() + SECONDS
    sent = requests()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        while time.monotonic() < ends or verdicts.total() < MIN_REQUESTS:
            batch = list(islice(sent, CONCURRENCY * 8))
            for request, verdict in zip(
                batch, pool.map(lambda each: verdict_on(edge, each), batch), strict=True
            ):
                verdicts[
                    verdict if verdict in (NOTHING, OUTSIDE) or verdict.isdigit() else OUTSIDE
                ] += 1
                if verdicts[OUTSIDE] > len(outside):
                    outside.append((request, verdict))
    print(
        f"seed {SEED}: {verdicts.total()} requests, {len(outside)} answers outside the envelope; "
        f"{dict(sorted(verdicts.items()))}"
    )
    assert not outside, outside[:3]
    assert len(verdicts) > 5
    assert edge.answers(200)


def verdict_on(edge: RunningEdge, sent: bytes) -> str:
    """Returns the status of the answer, NOTHING if there is none, or what is wrong with it."""
    received = received_for(edge, sent)
    if not received:
        return NOTHING
    to_head = sent.lstrip(b"\r\n").startswith(b"HEAD ")
    try:
        answer = parse(received, to_head=to_head)
        if answer.body and answer.status in UNPARSED and answer.header("connection") == "close":
            # The edge could not tell that the request was a HEAD. It may send a body, because it
            # closes the connection.
            to_head = False
        check(answer, to_head=to_head)
    except (AssertionError, ValueError) as error:
        return f"{received[:2000]!r}: {error!r:.500}"
    return str(answer.status)


def received_for(edge: RunningEdge, sent: bytes) -> bytes:
    """Sends bytes, and returns what the edge sends until it is silent for QUIET_SECONDS.

    Within an answer, a silence of up to REST_SECONDS is allowed, as on a busy machine.
    """
    received, to_head = b"", sent.lstrip(b"\r\n").startswith(b"HEAD ")
    address, began = ("127.0.0.1", edge.settings.rest_port), time.monotonic()
    with (
        socket.create_connection(address, timeout=REST_SECONDS) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(sent)
        connection.settimeout(QUIET_SECONDS)
        while not is_whole(received):
            try:
                chunk = connection.recv(65536)
            except TimeoutError:
                is_over = time.monotonic() - began > REST_SECONDS
                if is_over or not received or is_complete(received, to_head=to_head):
                    break
                continue
            if not chunk:
                break
            received += chunk
    return received


def is_complete(received: bytes, *, to_head: bool) -> bool:
    """Whether this is a complete answer, according to its headers."""
    try:
        answer = parse(received, to_head=to_head)
    except (AssertionError, ValueError):
        return False
    return to_head or len(answer.body) == int(answer.header("content-length") or len(answer.body))


def requests() -> Iterator[bytes]:
    """Yields requests without end: random bytes, and mutations of the requests in the tables."""
    chance = random.Random(SEED)
    while True:
        if chance.random() < 0.1:
            sent = chance.randbytes(chance.randrange(1, 400)) + b"\r\n\r\n"
        else:
            sent = mutated(chance, chance.choice(SEEDS))
        if not sent.startswith(PREFACE):
            yield sent


def mutated(chance: random.Random, sent: bytes) -> bytes:
    mutable = bytearray(sent)
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(mutable))
        match chance.randrange(3):
            case 0:
                mutable[place] = chance.randrange(256)
            case 1:
                del mutable[place : place + chance.randrange(1, 8)]
            case _:
                mutable[place:place] = chance.randbytes(chance.randrange(1, 8))
        if not mutable:
            return b"\r\n\r\n"
    return bytes(mutable)
