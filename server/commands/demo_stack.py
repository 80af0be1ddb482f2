"""The stack that the command `demo` shows: the one that runs here, or one of its own."""

import json
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import click
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from server.commands.environment import read_ready
from server.config import trust

_CALL_SECONDS = 10.0
# A quiet stream says something every 15 s.
_STREAM_SECONDS = 25.0
_READY_SECONDS = 90.0
_POLL_SECONDS = 0.02

T = TypeVar("T")


class Api:
    """The demo workspace of a running stack, over REST."""

    def __init__(self, ready: dict[str, Any]) -> None:
        self.rest_url: str = ready["rest_url"]
        self.workspace_id: str = ready["demo"]["workspace_id"]
        self._token: str = ready["demo"]["tokens"]["full_access"]
        self._tls = trust(ready["tls_cert_file"]) if "tls_cert_file" in ready else None

    def call(self, method: str, path: str = "", body: Any = None) -> dict[str, Any]:
        """Makes a call below the workspace. Raises OSError, or ClickException for an answer that is
        an error.
        """
        try:
            with self._open(method, path, body, _CALL_SECONDS) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                fail(
                    f"{method} {path or '/'} was answered {error.code}: {error.read().decode(errors='replace')}"
                )
        return answer

    def events(self, after: int) -> Iterator[dict[str, Any]]:
        """Follows the log behind this `seq`, as Server-Sent Events."""
        with self._open("GET", f"/events?after={after}", None, _STREAM_SECONDS) as response:
            for line in response:
                if line.startswith(b"data: "):
                    message = json.loads(line.removeprefix(b"data: "))
                    if "error" in message:
                        fail(f"the event stream broke off: {message['error']}")
                    if "event" in message:
                        yield message["event"]

    def _open(self, method: str, path: str, body: Any, timeout_seconds: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        url = f"{self.rest_url}/v1/workspaces/{self.workspace_id}{path}"
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - of ready.json
        return urllib.request.urlopen(request, timeout=timeout_seconds, context=self._tls)  # noqa: S310 - as above


def find_stack(state_dir: Path) -> Api | None:
    """The stack that runs; a ready.json that was left behind names none."""
    ready = read_ready(state_dir)
    if not ready:
        return None
    api = Api(ready)
    try:
        api.call("GET")
    except (OSError, click.ClickException):
        return None
    return api


@contextmanager
def own_stack(state_dir: Path) -> Iterator[Api]:
    """Starts a stack, and ends it whatever happens."""
    click.echo("No stack runs here: starting one, which ends with the demo …")
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryFile("w+") as output:
            # In a session of its own, so that Ctrl-C ends the demo, and the demo the stack.
            command = [sys.executable, "-m", "server", "up"]
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
    told = output.read().strip().splitlines()
    raise click.ClickException(
        f"The stack did not start. {told[-1].removeprefix('Error: ') if told else ''}"
    )


def fail(message: str) -> NoReturn:
    """Ends the demo with this line. Raises click.ClickException."""
    raise click.ClickException(message[0].upper() + message[1:])


def eventually(probe: Callable[[], T], timeout_seconds: float, message: str) -> T:
    """Asks until the answer is true. Raises click.ClickException."""
    again = Retrying(
        retry=retry_if_result(lambda found: not found),
        stop=stop_after_delay(timeout_seconds),
        wait=wait_fixed(_POLL_SECONDS),
    )
    try:
        return again(probe)
    except RetryError:
        fail(f"{message} within {timeout_seconds:.0f} s")
