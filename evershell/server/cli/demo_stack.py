"""Finds or starts the stack that the command `demo` uses, and calls its REST API."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import click
import httpx
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from evershell.server.cli.environment import read_ready
from evershell.server.stack.ready import Ready

_CALL_SECONDS = 10.0
# Longer than the 15 s between two heartbeats of an idle stream.
_STREAM_SECONDS = 25.0
_READY_SECONDS = 90.0
_POLL_SECONDS = 0.02

T = TypeVar("T")


class Api:
    """The demo workspace of a running stack, over REST."""

    def __init__(self, ready: Ready) -> None:
        self.workspace_id = ready.demo.workspace_id
        self._url = f"{ready.rest_url}/v1/workspaces/{self.workspace_id}"
        self._client = httpx.Client(
            headers={"authorization": f"Bearer {ready.demo.tokens['full_access']}"},
            timeout=_CALL_SECONDS,
            verify=ready.tls(),
            trust_env=False,
        )

    def call(self, method: str, path: str = "", body: Any = None) -> dict[str, Any]:
        """Calls the path below the workspace, and returns the answer.

        Raises httpx.HTTPError, and click.ClickException if the answer is an error.
        """
        response = self._client.request(method, f"{self._url}{path}", json=body)
        if not response.is_success:
            fail(f"{method} {path or '/'} was answered {response.status_code}: {response.text}")
        answer: dict[str, Any] = response.json()
        return answer

    def events(self, after: int) -> Iterator[dict[str, Any]]:
        """Yields the workspace's events after this `seq`, and waits for new ones.

        Raises httpx.HTTPError, and click.ClickException if the stream ends with an error.
        """
        with self._client.stream(
            "GET", f"{self._url}/events", params={"after": after}, timeout=_STREAM_SECONDS
        ) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    message = json.loads(line.removeprefix("data: "))
                    if "error" in message:
                        fail(f"the event stream ended with an error: {message['error']}")
                    if "event" in message:
                        yield message["event"]


def find_stack(state_dir: Path) -> Api | None:
    """The running stack; None if there is none. Ignores the ready.json of a killed stack."""
    ready = read_ready(state_dir)
    if ready is None:
        return None
    api = Api(ready)
    try:
        api.call("GET")
    except (httpx.HTTPError, click.ClickException):
        return None
    return api


@contextmanager
def own_stack(state_dir: Path) -> Iterator[Api]:
    """Starts a stack, and stops it at the end of the context."""
    click.echo("No stack runs. Starting one that ends with the demo …")
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryFile("w+") as output:
            # Its own session, so that Ctrl-C reaches only the demo, which then stops the stack.
            command = [sys.executable, "-m", "evershell.server", "up"]
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
            try:
                yield _await_ready(state_dir, process, output)
            finally:
                click.echo("Stopping the stack.")
                process.terminate()
                process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _await_ready(state_dir: Path, process: "subprocess.Popen[bytes]", output: IO[str]) -> Api:
    def probe() -> Api | bool | None:
        return process.poll() is not None or find_stack(state_dir)

    found = eventually(probe, _READY_SECONDS, "the stack did not get ready")
    if isinstance(found, Api):
        return found
    output.seek(0)
    lines = output.read().strip().splitlines()
    reason = lines[-1].removeprefix("Error: ") if lines else ""
    raise click.ClickException(f"The stack did not start. {reason}")


def fail(message: str) -> NoReturn:
    """Ends the demo with this message. Raises click.ClickException."""
    raise click.ClickException(message[0].upper() + message[1:])


def eventually(probe: Callable[[], T], timeout_seconds: float, message: str) -> T:
    """Calls `probe` until its result is true, and returns the result.

    Raises click.ClickException after the timeout.
    """
    again = Retrying(
        retry=retry_if_result(lambda found: not found),
        stop=stop_after_delay(timeout_seconds),
        wait=wait_fixed(_POLL_SECONDS),
    )
    try:
        return again(probe)
    except RetryError:
        fail(f"{message} within {timeout_seconds:.0f} s")
