"""Browsers and libraries resume a stream of events whose connection was cut.

A proxy cuts the first connections of each client at different bytes, even within an event. The
client then has every event once, in order. Each client waits for a second before it connects again.
To save time, all libraries therefore read the same stream concurrently.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from evershell.workspace.v1 import event_pb2
from playwright.sync_api import Browser

from tests.clients.long.proxy import Proxy, proxy
from tests.support.browser import browser as browser
from tests.support.npm import node, node_modules, program_folder
from tests.support.openapi import operations
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

PROGRAMS = Path(__file__).with_name("programs")
# After how many bytes of its answer each connection is cut. The headers of an answer take about 500
# bytes, and an event 400 to 1,000.
LIMITS = (700, 1_300, 2_900, 2_000, 3_500)
TYPES = [value.name for value in event_pb2.EventType.Type.DESCRIPTOR.values if value.number]
CLIENT_SECONDS = 60
# The id, the type, and the `seq` in the data of an event.
Seen = list[tuple[str, str, str]]
Client = Callable[[str, str], Seen]


def node_client(program: str) -> Client:
    def run(url: str, token: str) -> Seen:
        with tempfile.TemporaryDirectory() as folder:
            beside = program_folder(Path(folder), PROGRAMS / program)
            return _seen(
                node(
                    beside / program,
                    folder=beside,
                    seconds=CLIENT_SECONDS,
                    URL=url,
                    TOKEN=token,
                    TYPES=",".join(TYPES),
                )
            )

    return run


def sample_client(language: str) -> Client:
    """A client that runs the sample of the OpenAPI document until the workspace stops."""

    def run(url: str, token: str) -> Seen:
        (source,) = [
            sample["source"]
            for each in operations()
            if each.path.endswith("/{workspace_id}/events")
            for sample in each.described.get("x-codeSamples", [])
            if sample["lang"] == language
        ]
        base, _, path = url.partition("/v1/")
        arguments = [base, token, path.split("/")[1]]
        with tempfile.TemporaryDirectory() as folder:
            if language == "JavaScript":
                program = Path(folder, "sample.mjs")
                program.write_text(JAVASCRIPT_PRELUDE + source)
                done = node(program, *arguments, folder=Path(folder), seconds=CLIENT_SECONDS)
            else:
                program = Path(folder, "sample.py")
                program.write_text(PYTHON_PRELUDE + source)
                done = subprocess.run(
                    [sys.executable, program, *arguments],
                    check=False,
                    capture_output=True,
                    text=True,
                    timeout=CLIENT_SECONDS,
                )
        return _seen(done)

    return run


# The beginnings of programs that run a sample. The programs print what `_seen` reads, and end when
# the workspace stops.
JAVASCRIPT_PRELUDE = """
const [url, token, workspaceId] = process.argv.slice(2);
const seq = 0;
console.log = ({ event }) => {
  if (!event) return;
  const line = JSON.stringify([event.seq, event.type, event.seq]) + "\\n";
  process.stdout.write(line, () => event.type === "workspace_stopped" && process.exit(0));
};
"""
PYTHON_PRELUDE = """
import json, sys
url, token, workspace_id = sys.argv[1:]
seq = 0
def print(message):
    if event := message.get("event"):
        sys.stdout.write(json.dumps([event["seq"], event["type"], event["seq"]]) + "\\n")
        if event["type"] == "workspace_stopped":
            sys.exit(0)
"""


def _seen(done: "subprocess.CompletedProcess[str]") -> Seen:
    assert done.returncode == 0, done.stdout + done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def work(workspace: Workspace, was_cut: Callable[[int], bool]) -> None:
    """Makes events before and after each cut, then stops the workspace.

    `was_cut(times)` says whether every stream was cut that many times, or has ended.
    """
    for cuts, _ in enumerate(LIMITS, 1):
        workspace.await_end(workspace.submit("echo one", "echo two"))
        eventually(partial(was_cut, cuts), CLIENT_SECONDS)
    workspace.await_end(workspace.submit("true"))
    workspace.rest.post(f"{workspace.path}/stop")


def check(workspace: Workspace, used: Proxy, seen: Seen) -> None:
    log = [(str(entry["seq"]), entry["type"], str(entry["seq"])) for entry in workspace.log()]
    assert [tuple(each) for each in seen] == log
    assert used.cuts == len(LIMITS)
    first, *later = used.last_ids
    assert first in (None, "0")
    ids = [0 if last_id is None else int(last_id) for last_id in later]
    assert ids == sorted(ids) and ids[-1] > 0


LIBRARIES: dict[str, Client] = {
    "eventsource": node_client("eventsource.mjs"),
    "fetch-event-source": node_client("fetch_event_source.mjs"),
    "sample-js": sample_client("JavaScript"),
    "sample-python": sample_client("Python"),
}
# These libraries need npm packages.
IN_NODE = ("eventsource", "fetch-event-source")


@dataclass(frozen=True)
class Reading:
    """The events that one library reads from the stream."""

    proxy: Proxy
    seeing: Future[Seen]

    def was_cut(self, times: int) -> bool:
        """Whether the connection was cut `times` times, or the library has ended."""
        return self.proxy.cuts >= times or self.seeing.done()


@dataclass(frozen=True)
class Readings:
    """The events that all libraries read from the stream of one workspace."""

    workspace: Workspace
    of: dict[str, Reading]


@pytest.fixture(scope="module")
def readings(stack: Stack) -> Iterator[Readings]:
    """Makes events while all libraries whose packages are installed read them."""
    libraries = dict(LIBRARIES)
    try:
        node_modules()
    except pytest.skip.Exception:
        for name in IN_NODE:
            del libraries[name]
    workspace, token = Workspace(stack), stack.tokens["full_access"]
    with ExitStack() as resources:
        pool = resources.enter_context(ThreadPoolExecutor(len(libraries)))
        of = {}
        for name, client in libraries.items():
            used = resources.enter_context(proxy(stack, LIMITS))
            url = f"{used.url}{workspace.path}/events"
            of[name] = Reading(used, pool.submit(client, url, token))
        work(workspace, lambda times: all(each.was_cut(times) for each in of.values()))
        yield Readings(workspace, of)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_loses_and_repeats_no_event(readings: Readings, name: str) -> None:
    if name not in readings.of:
        # Skips the test, with the reason.
        node_modules()
    reading = readings.of[name]
    check(readings.workspace, reading.proxy, reading.seeing.result(CLIENT_SECONDS))


@pytest.fixture
def page(browser: Browser) -> Iterator[Any]:
    opened = browser.new_page()
    yield opened
    opened.close()


SCRIPT = """
([url, types]) => {
  window.seen = [];
  const source = new EventSource(url);
  for (const type of types) {
    source.addEventListener(type, (event) => {
      window.seen.push([event.lastEventId, event.type, JSON.parse(event.data).event.seq]);
      if (type === "workspace_stopped") source.close();
    });
  }
  source.onmessage = (event) => window.seen.push(["?", "message", event.data]);
}
"""


@pytest.mark.soak
def test_a_browser_loses_and_repeats_no_event(
    stack: Stack, workspace: Workspace, page: Any
) -> None:
    """Uses the browser's own EventSource. It cannot send the token, so the proxy adds it."""
    with proxy(stack, LIMITS, stack.tokens["full_access"]) as used:
        url = f"{used.url}{workspace.path}/events"
        page.evaluate(SCRIPT, [url, TYPES])
        work(workspace, lambda times: used.cuts >= times)
        page.wait_for_function(
            "() => window.seen.some(([, type]) => type === 'workspace_stopped')",
            timeout=CLIENT_SECONDS * 1000,
        )
        check(workspace, used, page.evaluate("() => window.seen"))
