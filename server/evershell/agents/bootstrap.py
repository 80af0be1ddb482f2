"""Gets the secrets of an agent whose spec has only a bootstrap token."""

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc.aio
from evershell.agent.v1.runtime_service_pb2 import BootstrapRequest, BootstrapResponse

from evershell.agents.runtime_client import MAX_ATTEMPT_SECONDS, RuntimeStub, connect
from evershell.pod.spec import PodSpec
from evershell.pod.tls import TlsIdentity
from evershell.telemetry.logs import Log

_MAX_BACKOFF_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.05
# Answers that another attempt does not change.
_FINAL = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED})


class RefusedError(Exception):
    """The control plane refused the bootstrap token. The text says why."""


async def complete(spec: PodSpec, tls: TlsIdentity | None, log: Log) -> PodSpec:
    """The whole spec of the agent. Asks one worker after the other until one answers.

    What the agent knows about its own place, it keeps. Raises RefusedError.
    """
    channels, workers = connect(spec.runtime_addresses, tls)
    try:
        given = json.loads((await _ask(workers, spec, log)).spec)
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_ATTEMPT_SECONDS):
                await asyncio.gather(*(channel.close() for channel in channels))
    return _merged(spec, given)


async def _ask(workers: Mapping[str, RuntimeStub], spec: PodSpec, log: Log) -> BootstrapResponse:
    metadata = (("authorization", f"Bearer {spec.bootstrap_token}"),)
    backoff_seconds = _FIRST_BACKOFF_SECONDS
    while True:
        for address, stub in workers.items():
            try:
                return await stub.Bootstrap(
                    BootstrapRequest(), metadata=metadata, timeout=MAX_ATTEMPT_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in _FINAL:
                    raise RefusedError(error.details()) from None
                log.warning("bootstrap_failed", worker=address, code=error.code().name)
        await asyncio.sleep(random.uniform(0, backoff_seconds))  # noqa: S311 - no secret
        backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)


def _merged(own: PodSpec, given: Mapping[str, Any]) -> PodSpec:
    """The given spec with what only the agent's own one knows: where it listens and works."""
    whole = PodSpec.read(given)
    return replace(
        whole,
        runtime_addresses=own.runtime_addresses,
        listen_host=own.listen_host,
        listen_port=own.listen_port,
        files_dir=own.files_dir,
        bwrap=own.bwrap,
    )
