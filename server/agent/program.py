"""The agent's composition root."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import structlog
from evershell.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from structlog.typing import FilteringBoundLogger

from server.agent.admission import Admission
from server.agent.authorization import TokenVerifier
from server.agent.committer import Committer
from server.agent.heartbeat import Heartbeat
from server.agent.lease import Lease
from server.agent.loop import Limits, RejectedError, TaskInHand, run_task
from server.agent.model import Endpoint, Model
from server.agent.models import UnknownModelError, model_of
from server.agent.service import AgentService
from server.agent.session import Session
from server.agent.shutdown import AgentOverError, ExitCode, Shutdown
from server.agent.tools import ShellTool, Tool
from server.core.lifecycle import Ending
from server.crash_points import CrashPoints, kind_of
from server.pod_process import adopt

# Whatever hangs while the agent ends is left behind.
_CLOSING_SECONDS = 3.0
# A model that keeps the time limit by itself says best why it took so long, so the loop's own limit
# comes a little later.
_OVERRUN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What an agent is started with."""

    workspace_id: str
    epoch: int
    # host:port of every control plane worker.
    runtime_addresses: list[str]
    # Minted by the control plane for this workspace and this epoch.
    runtime_token: str = field(repr=False)
    # An Ed25519 JWK, as JSON.
    control_plane_public_key: str
    # The directory in which tools run. The default is the working directory, which the controller
    # has set.
    files_dir: Path = Path()
    model: str = "scripted"
    openai_base_url: str = ""
    openai_api_key: str = field(default="", repr=False)
    model_timeout_seconds: float = 120.0
    tool_timeout_seconds: float = 600.0
    # The address that the agent listens on, and tells the control plane.
    listen_host: str = "127.0.0.1"
    # For tests: where files arm the points of crash_points.py. Empty: there are no such points.
    crash_points_dir: str = ""


async def run_agent(
    settings: AgentSettings, model: Model | None = None, tool: Tool | None = None
) -> ExitCode:
    """Runs until SIGTERM or SIGINT, or until the agent is fenced or its lease is over; the tools
    have ended when it returns.

    Returns the exit code for the process, see ExitCode; the log has the reason. `model` and `tool`
    replace the settings' model and the shell.
    """
    log: FilteringBoundLogger = structlog.get_logger()
    adopt()
    shutdown, lease = Shutdown(), Lease()
    try:
        model = model or model_of(settings.model, _endpoint(settings))
        verifier = TokenVerifier(settings.control_plane_public_key, settings.workspace_id)
    except (UnknownModelError, ValueError) as error:
        log.error("settings_unusable", reason=str(error))
        return ExitCode.BAD_SETTINGS
    tool = tool or ShellTool(
        settings.files_dir, settings.workspace_id, settings.epoch, settings.tool_timeout_seconds
    )
    limits = Limits(model_timeout_seconds=settings.model_timeout_seconds + _OVERRUN_SECONDS)

    async def work(task: TaskInHand) -> Ending | None:
        return await run_task(task, model, tool, committer.commit, limits, heartbeat.hurry)

    session = Session(work, shutdown, lambda: heartbeat.hurry(), log)
    committer = Committer(
        settings.runtime_addresses,
        settings.runtime_token,
        lease,
        shutdown,
        session.mark,
        session.apply,
        lambda: session.trace,
        log,
    )
    service = AgentService(session, settings.workspace_id, settings.epoch)
    if settings.crash_points_dir:
        points = CrashPoints(Path(settings.crash_points_dir))
        service = points.armed(service, CancelTask="ack")
        committer = points.armed(committer, commit=lambda _, events: f"{kind_of(events)}_commit")
    heartbeat = Heartbeat(committer, lease, session)
    server = grpc.aio.server(interceptors=[Admission(verifier)])
    add_AgentServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"{settings.listen_host}:0")

    async def live() -> None:
        await committer.register(f"{settings.listen_host}:{port}", os.getpid())
        log.info("registered", port=port)
        await heartbeat.run()

    async def watch_lease() -> None:
        await lease.wait_over()
        shutdown.begin(ExitCode.LEASE_OVER, "the lease could not be renewed in time")

    with _signals(partial(shutdown.begin, ExitCode.STOPPED, "asked to stop")):
        await server.start()
        background = [_guarded(live(), shutdown, log), _guarded(watch_lease(), shutdown, log)]
        await shutdown.wait()
        log.info("ending", reason=shutdown.reason, exit_code=int(shutdown.code))
        # The tools first: that they have ended is what the end of the agent stands for.
        await session.close()
        for part in background:
            part.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await asyncio.wait(background)
                await server.stop(grace=None)
                await committer.close()
    return shutdown.code


def _endpoint(settings: AgentSettings) -> Endpoint:
    return Endpoint(
        base_url=settings.openai_base_url,
        api_key=settings.openai_api_key,
        timeout_seconds=settings.model_timeout_seconds,
    )


def _guarded(
    part: Coroutine[Any, Any, None], shutdown: Shutdown, log: FilteringBoundLogger
) -> "asyncio.Task[None]":
    """Runs a part of the agent; what it raises ends the agent."""

    async def guard() -> None:
        try:
            await part
        except AgentOverError:
            pass
        except RejectedError as error:
            shutdown.begin(ExitCode.REJECTED, f"the control plane refused the agent: {error}")
        except Exception as error:
            log.exception("crashed")
            shutdown.begin(ExitCode.CRASHED, repr(error))

    return asyncio.create_task(guard())


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` when the process is asked to end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
