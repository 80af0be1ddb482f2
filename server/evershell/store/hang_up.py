"""Bounds the wait for the answers of a database that may be frozen."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection


@contextmanager
def answered_within(connection: AsyncConnection[Any], limit_seconds: float) -> Iterator[None]:
    """Shuts the connection down if the block takes longer than the limit.

    A wait for the server within the block then raises psycopg.OperationalError. A frozen server
    does not enforce its own limits, and cancelling the wait does not help, because psycopg then
    sends a cancel request and waits for the server's answer.
    """
    timer = hang_up_after(connection, limit_seconds)
    try:
        yield
    finally:
        timer.cancel()


def hang_up_after(connection: AsyncConnection[Any], seconds: float) -> asyncio.TimerHandle:
    """Shuts the connection down after this time, unless the timer is cancelled before."""
    return asyncio.get_running_loop().call_later(seconds, _hang_up, connection)


def _hang_up(connection: AsyncConnection[Any]) -> None:
    # A duplicate, because psycopg closes its own descriptor.
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
