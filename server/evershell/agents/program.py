"""The program `agent`: builds an agent from its spec and runs it."""

import asyncio
import base64
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from evershell.agent.v1.agent_service_pb2 import Signal
from evershell.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from evershell.agent.v1.runtime_service_pb2 import BootstrapRequest, BootstrapResponse

from evershell.agents import scripted
from evershell.agents.agent import Agent
from evershell.agents.lease import MAX_BACKOFF_SECONDS
from evershell.agents.loop import AgentFunction
from evershell.agents.runtime_client import (
    FIRST_BACKOFF_SECONDS,
    MAX_ATTEMPT_SECONDS,
    ControlPlaneClock,
    RuntimeCredential,
    RuntimeStub,
    connect,
)
from evershell.agents.service import Acknowledge, AgentService, TokenVerifier, acknowledge
from evershell.agents.shutdown import ExitCode
from evershell.agents.step import Limits
from evershell.agents.tools import ShellTool
from evershell.backoff import backoff
from evershell.pod.crash_points import CrashPoints
from evershell.pod.process import become_subreaper, become_unreadable
from evershell.pod.sandbox import ToolLimits, ToolSandbox
from evershell.pod.spec import PodSpec
from evershell.pod.tls import TlsIdentity, listen
from evershell.telemetry.logs import Log

# The time limit for closing the server and the channels, which may hang.
_CLOSING_SECONDS = 3.0
# The models of this package enforce the time limit themselves, because their errors can name the
# cause. The loop's own limit is longer by this much.
_MODEL_MARGIN_SECONDS = 1.0
_SERVER_OPTIONS = (
    # A connection, with its stream of signals, ends after about this long. Some networks silently
    # drop a connection that has been idle for about six minutes.
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 2_000),
)
# Status codes after which another attempt would not help.
_FINAL = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED})


class UnknownModelError(Exception):
    """No model with that name exists, or its package is not installed."""


async def run(spec: PodSpec, log: Log, function: AgentFunction | None = None) -> ExitCode:
    """Runs the agent until SIGTERM or SIGINT, or until it must end for a reason that it logs.

    All tools have ended when this function returns. If `function` is None, it runs the agent for
    the spec's model.
    """
    become_subreaper()
    completed = await with_secrets(spec, log)
    if completed is None:
        return ExitCode.UNAUTHORIZED
    spec = completed
    try:
        margin_seconds = 0.0 if function else _MODEL_MARGIN_SECONDS
        function = function or create_agent(spec)
        clock = ControlPlaneClock()
        verifier = TokenVerifier(spec.signal_secret, clock)
        credential = RuntimeCredential(spec.workspace_id, spec.epoch, spec.runtime_secret, clock)
    except (UnknownModelError, ValueError) as error:
        log.error("spec_unusable", reason=str(error))
        return ExitCode.BAD_SPEC
    crash_points = CrashPoints(Path(spec.crash_points_dir)) if spec.crash_points_dir else None
    tls = _tls(spec)
    channels, workers = connect(spec.runtime_addresses, tls)
    agent = Agent(
        workers,
        credential,
        function,
        Limits(
            model_timeout_seconds=spec.model_timeout_seconds + margin_seconds,
            tool_timeout_seconds=spec.tool_timeout_seconds,
        ),
        log,
        crash_points=crash_points,
    )
    answer: Acknowledge = partial(acknowledge, agent.session)
    if crash_points is not None:
        answer = crash_points.around(_point_of, answer)
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    add_AgentServiceServicer_to_server(AgentService(verifier, answer, agent.session), server)
    host = _host(spec)
    port = listen(server, f"{host}:{spec.listen_port}", tls)
    with _signals(partial(agent.shutdown.begin, ExitCode.STOPPED, "asked to stop")):
        await server.start()
        await agent.run(f"{host}:{port}")
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await server.stop(grace=None)
                await asyncio.gather(*(channel.close() for channel in channels))
    return agent.shutdown.code


async def with_secrets(spec: PodSpec, log: Log) -> PodSpec | None:
    """The spec with its secrets; None if the control plane refuses, or sends an invalid spec."""
    if not spec.bootstrap_token:
        return spec
    # From here on, no tool that runs as the same user can read the secrets in this process.
    become_unreadable()
    try:
        return await complete(spec, _tls(spec), log)
    except (BootstrapRefusedError, ValueError, TypeError) as error:
        log.error("bootstrap_refused", reason=str(error))
        return None


def create_agent(spec: PodSpec) -> AgentFunction:
    """The agent for the spec's model: `scripted` or `openai:<model>`.

    Raises UnknownModelError, or ValueError if the settings of the endpoint are not valid.
    """
    if spec.model == scripted.NAME:
        return scripted.scripted_agent(_shell(spec))
    kind, _, hosted = spec.model.partition(":")
    if kind == "openai" and hosted:
        try:
            # Imported here, because the SDK takes a second and 30 MB.
            from evershell.agents.openai_model import OpenAIModel, openai_agent
        except ModuleNotFoundError as error:
            raise UnknownModelError(
                f"The model {spec.model!r} needs the package {error.name}, which is not installed. "
                "Install the extra `agent` of evershell."
            ) from error
        model = OpenAIModel(
            hosted,
            base_url=spec.openai_base_url,
            api_key=spec.openai_api_key,
            timeout_seconds=spec.model_timeout_seconds,
        )
        return openai_agent(model, _shell(spec))
    raise UnknownModelError(
        f"There is no model {spec.model!r}. Use {scripted.NAME!r} or 'openai:<model>'."
    )


def _host(spec: PodSpec) -> str:
    host = spec.listen_host or os.environ.get("POD_IP", "")
    return f"[{host}]" if ":" in host else host


def _point_of(signal: Signal) -> str:
    """The name of the crash point (pod/crash_points.py) where the agent acknowledges the signal."""
    return "ack" if signal.HasField("cancel_task") else "start_ack"


def _tls(spec: PodSpec) -> TlsIdentity | None:
    if not spec.tls_certificate:
        return None
    return TlsIdentity(
        certificate=spec.tls_certificate, private_key=spec.tls_key, trusted=spec.tls_trusted
    )


def _shell(spec: PodSpec) -> ShellTool:
    own = Path(spec.files_dir), spec.workspace_id, spec.epoch
    if not spec.bwrap:
        return ShellTool(*own)
    limits = ToolLimits(
        memory_bytes=spec.tool_memory_mb * 2**20,
        processes=spec.tool_processes,
        file_bytes=spec.tool_file_mb * 2**20,
        has_network=spec.tool_has_network,
    )
    return ShellTool(*own, ToolSandbox(spec.bwrap, limits, base64.b64decode(spec.tool_filter)))


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within the context, SIGTERM and SIGINT call `stop`."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class BootstrapRefusedError(Exception):
    """The control plane refused the bootstrap token. The text says why."""


async def complete(spec: PodSpec, tls: TlsIdentity | None, log: Log) -> PodSpec:
    """Fetches the whole spec of the agent. Asks one worker after the other until one answers.

    The agent keeps its own addresses and paths. Raises BootstrapRefusedError, and ValueError or
    TypeError if the fetched spec is not valid.
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
    # A random order, so that the agents do not all ask the same worker first.
    order = random.sample([*workers.items()], len(workers))
    failures = 0
    while True:
        for address, stub in order:
            try:
                return await stub.Bootstrap(
                    BootstrapRequest(), metadata=metadata, timeout=MAX_ATTEMPT_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in _FINAL:
                    raise BootstrapRefusedError(error.details()) from None
                log.warning("bootstrap_failed", worker=address, code=error.code().name)
        failures += 1
        await asyncio.sleep(backoff(failures, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS))


def _merged(own: PodSpec, given: Mapping[str, Any]) -> PodSpec:
    """The given spec, with the addresses and paths of the agent's own spec."""
    whole = PodSpec.read(given)
    return replace(
        whole,
        runtime_addresses=own.runtime_addresses,
        listen_host=own.listen_host,
        listen_port=own.listen_port,
        files_dir=own.files_dir,
        bwrap=own.bwrap,
    )
