"""Finds or starts the stack that the command `demo` uses."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, TypeVar

import click
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from evershell.client import Client, EvershellError
from evershell.commands.environment import read_ready

_READY_SECONDS = 90.0
_POLL_SECONDS = 0.02

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DemoStack:
    """A running stack and its demo workspace."""

    client: Client
    workspace_id: str


def find_stack(state_dir: Path) -> DemoStack | None:
    """The running stack; None if there is none. Ignores the ready.json of a killed stack."""
    ready = read_ready(state_dir)
    if ready is None:
        return None
    client = Client(ready.grpc_url, ready.demo.tokens["full_access"], ca_file=ready.tls_cert_file)
    stack = DemoStack(client, ready.demo.workspace_id)
    try:
        client.with_options(max_retries=0).get_workspace(stack.workspace_id)
    except EvershellError:
        client.close()
        return None
    return stack


@contextmanager
def own_stack(state_dir: Path) -> Iterator[DemoStack]:
    """Starts a stack, and stops it at the end of the context."""
    click.echo("No stack runs. Starting one that ends with the demo …")
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryFile("w+") as output:
            # Its own session, so that Ctrl-C reaches only the demo, which then stops the stack.
            command = [sys.executable, "-m", "evershell.commands", "up"]
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


def _await_ready(state_dir: Path, process: "subprocess.Popen[bytes]", output: IO[str]) -> DemoStack:
    def probe() -> DemoStack | bool | None:
        return process.poll() is not None or find_stack(state_dir)

    result = eventually(probe, _READY_SECONDS, "the stack did not get ready")
    if isinstance(result, DemoStack):
        return result
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
        retry=retry_if_result(lambda result: not result),
        stop=stop_after_delay(timeout_seconds),
        wait=wait_fixed(_POLL_SECONDS),
    )
    try:
        return again(probe)
    except RetryError:
        fail(f"{message} within {timeout_seconds:.0f} s")
