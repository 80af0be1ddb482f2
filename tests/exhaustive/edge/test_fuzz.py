"""Whatever is sent: what comes back is the envelope, or a success. FUZZ_SECONDS makes it longer,
FUZZ_SEED another one.
"""

import contextlib
import os
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tests.exhaustive.edge.fuzz import requests
from tests.support.edge.answers import check
from tests.support.edge.clients import is_whole, parse
from tests.support.edge.stub import RunningEdge, Stub

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# A request that may have more to come is not waited for: nothing is said to it yet.
QUIET_SECONDS = 0.5
# Enough to have met each status, on a machine that is slow.
LEAST = 300
AT_ONCE = 16
UNREAD = (400, 426, 431)
NOTHING, OUTSIDE = "nothing", "outside"


def test_whatever_is_sent(edge: RunningEdge, stub: Stub) -> None:
    stub.release.set()
    told: Counter[str] = Counter()
    outside: list[tuple[bytes, str]] = []
    ends = time.monotonic() + SECONDS
    sent = requests(SEED)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while time.monotonic() < ends or told.total() < LEAST:
            batch = list(islice(sent, AT_ONCE * 8))
            for request, verdict in zip(
                batch, pool.map(lambda each: verdict_on(edge, each), batch), strict=True
            ):
                told[
                    verdict if verdict in (NOTHING, OUTSIDE) or verdict.isdigit() else OUTSIDE
                ] += 1
                if told[OUTSIDE] > len(outside):
                    outside.append((request, verdict))
    print(
        f"seed {SEED}: {told.total()} requests, {len(outside)} answers outside the envelope; {dict(sorted(told.items()))}"
    )
    assert not outside, outside[:3]
    assert len(told) > 5
    assert edge.answers(200)


def verdict_on(edge: RunningEdge, sent: bytes) -> str:
    """The answer's status; or that there was none; or what is wrong with it."""
    received = received_for(edge, sent)
    if not received:
        return NOTHING
    to_head = sent.lstrip(b"\r\n").startswith(b"HEAD ")
    try:
        answer = parse(received, to_head=to_head)
        if answer.body and answer.status in UNREAD and answer.header("connection") == "close":
            # What cannot be read is not known to be a HEAD, and nothing more comes on this
            # connection.
            to_head = False
        check(answer, to_head=to_head)
    except (AssertionError, ValueError) as error:
        return f"{received[:2000]!r}: {error!r:.500}"
    return str(answer.status)


def received_for(edge: RunningEdge, sent: bytes) -> bytes:
    """What comes back for these bytes, until nothing has for a while."""
    received = b""
    address = ("127.0.0.1", edge.settings.rest_port)
    with socket.create_connection(address, timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(sent)
        connection.settimeout(QUIET_SECONDS)
        while chunk := connection.recv(65536):
            received += chunk
            if is_whole(received):
                break
    return received


def test_a_seed_always_gives_the_same() -> None:
    assert (
        list(islice(requests(7), 200))
        == list(islice(requests(7), 200))
        != list(islice(requests(8), 200))
    )
