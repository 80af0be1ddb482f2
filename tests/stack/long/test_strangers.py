"""Floods from strangers do not make other callers fail.

FLOOD_SECONDS sets how long the floods last.
"""

import json
import os
import socket
import time
from contextlib import ExitStack
from functools import partial
from urllib.parse import urlsplit

import psutil
import pytest

from tests.stack.long.load import Caller, GrpcCaller, Load, RestCaller
from tests.stack.long.strangers import BAD_CREDENTIALS, FLOODS, RESETS, flooded
from tests.support.edge.clients import is_whole, parse
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# How long the floods may take to open enough streams.
COMPLETE_SECONDS = 60.0
# How long the floods go on after they have opened enough streams.
SECONDS = float(os.environ.get("FLOOD_SECONDS", "1"))
PAUSE_SECONDS = 0.04
# How many MiB a program's memory may grow. If a worker kept each message, it would grow by 1,200.
GROWTH_MB = {"serve": 100, "envoy": 400}


@pytest.mark.parametrize("framing", ["content-length: 16000", "transfer-encoding: chunked"])
def test_a_bad_credential_is_refused_before_the_body(
    stack: Stack, workspace: Workspace, framing: str
) -> None:
    url = urlsplit(stack.ready["rest_url"])
    head = (
        f"POST {workspace.path}/task/cancel HTTP/1.1\r\nhost: x\r\n"
        f"authorization: Bearer sk_unknown\r\n{framing}\r\n\r\n"
    )
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(head.encode())
        received = b""
        while not is_whole(received):
            part = connection.recv(65536)
            assert part, received
            received += part
    answer = parse(received)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (401, "unauthenticated")


def test_resets_bad_credentials_and_half_messages(stack: Stack, workspace: Workspace) -> None:
    task_id = workspace.submit("true")
    workspace.await_end(task_id)
    fields = {"workspace_id": workspace.id, "task_id": task_id}
    callers: tuple[Caller, ...] = (
        RestCaller(stack, keeps_connection=False),
        RestCaller(stack),
        GrpcCaller(stack),
    )
    load, before = Load(PAUSE_SECONDS), memory_mb(stack)
    peaks = dict(before)
    completed: list[float] = []

    with ExitStack() as running:
        floods = {
            name: running.enter_context(
                flooded(
                    name,
                    stack.ready["grpc_addr"]
                    if name != "reset_over_rest"
                    else stack.ready["rest_url"].removeprefix("http://"),
                    stack.tokens["submit_observe"],
                )
            )
            for name in FLOODS
        }
        running.callback(load.stop)
        for caller in callers:
            load.repeat("cancel", partial(cancel, load, caller, fields))

        def is_over() -> bool:
            """Whether SECONDS have passed since every flood had opened enough streams.

            Also measures the memory.
            """
            for program, now in memory_mb(stack).items():
                peaks[program] = max(peaks[program], now)
            if all(flood.is_complete for flood in floods.values()):
                completed.append(time.monotonic())
            return bool(completed) and time.monotonic() > completed[0] + SECONDS

        eventually(is_over, COMPLETE_SECONDS + SECONDS)
    print(load.outcomes, before, peaks, {name: flood.told for name, flood in floods.items()})
    assert load.outcomes.failures == []
    for program, limit in GROWTH_MB.items():
        assert peaks[program] - before[program] < limit, program
    assert floods["reset_over_grpc"].told["opened"] >= RESETS
    assert floods["reset_over_rest"].told["opened"] >= RESETS
    assert floods["bad_credentials"].told["ended"] >= BAD_CREDENTIALS / 2


def cancel(load: Load, caller: Caller, fields: dict[str, str]) -> None:
    load.call("cancel", caller, "CancelTask", **fields)


def memory_mb(stack: Stack) -> dict[str, int]:
    """Returns the memory of the edge, and of the largest worker."""
    (envoy,) = [each for each in psutil.Process(stack.pid).children() if each.name() == "envoy"]
    workers = map(psutil.Process, stack.pids("serve"))
    return {
        "envoy": envoy.memory_info().rss >> 20,
        "serve": max(each.memory_info().rss >> 20 for each in workers),
    }
