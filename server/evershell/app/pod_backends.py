"""Builds the pod backend, and makes the specs with which it starts agents."""

import asyncio
import base64
import errno
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from evershell.app.settings import Settings
from evershell.auth.pod_tokens import PodTokens
from evershell.core.errors import OperatorError
from evershell.core.runtime import AgentIdentity
from evershell.fleet.kubernetes.objects import AGENT_PORT, FILES_DIR, PodTemplate
from evershell.fleet.local import isolation
from evershell.fleet.local.agent_modules import compile_agent_modules
from evershell.fleet.local.fork_server import ForkServer
from evershell.fleet.local.local_pods import LocalPods
from evershell.fleet.pods import Pods
from evershell.pod import crash_points
from evershell.pod.process import become_subreaper
from evershell.pod.spec import PodSpec

if TYPE_CHECKING:
    from evershell.auth.agent_certificates import AgentCertificates

log = structlog.get_logger()

# The minimum length of a key. Keys are redacted in texts, and a shorter key would also match
# unrelated text.
_MIN_KEY_CHARACTERS = 8
# How long the controller waits, after the grace period of a pod, for the cluster to confirm that
# the pod is gone.
_END_SECONDS = 20.0
# In a sandbox, the maximum number of processes of a tool call. Only a tool that has gone wrong
# comes close to it.
TOOL_PROCESSES = 512
# In a sandbox, the maximum size of each file that a tool writes. Only a tool that has gone wrong
# reaches it.
_TOOL_FILE_MB = 4096


@asynccontextmanager
async def pods_of(
    settings: Settings, pod_tokens: PodTokens, certificates: "AgentCertificates | None"
) -> AsyncIterator[tuple[Pods, str]]:
    """The backend of the pods, and the id of the run that they belong to.

    Raises OperatorError.
    """
    if settings.on_kubernetes:
        async with _kubernetes_pods(settings, pod_tokens, certificates) as backend:
            yield backend
        return
    if not settings.agent_command or "evershell.agents" in settings.agent_command:
        await asyncio.to_thread(compile_agent_modules, settings.model)
    pod_isolation = await asyncio.to_thread(
        isolation.choose, settings.pod_isolation, settings.state_dir
    )
    log.info("pod_isolation_chosen", isolation=pod_isolation.name, lacks=pod_isolation.lacks)
    become_subreaper()
    fork_server = _fork_server(settings) if pod_isolation.name == "sandbox" else None
    pods = LocalPods(
        settings.state_dir,
        spec_for(settings, pod_tokens, certificates, pod_isolation),
        pod_isolation,
        shlex.split(settings.agent_command),
        foreign_children=(),
        fork_server=fork_server,
    )
    reaping = asyncio.create_task(pods.reap(), name="reap-agents")
    try:
        yield pods, settings.run_id
    finally:
        reaping.cancel()
        if fork_server is not None:
            fork_server.close()


def _fork_server(settings: Settings) -> ForkServer | None:
    """The fork server for the agents of this package; None for other agents."""
    if settings.agent_command:
        return None
    # -P keeps the current directory out of sys.path, as in the command that starts an agent.
    command = [sys.executable, "-P", "-m", "evershell.agents.fork_server", settings.model]
    return ForkServer(command, {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"})


@asynccontextmanager
async def _kubernetes_pods(
    settings: Settings, pod_tokens: PodTokens, certificates: "AgentCertificates | None"
) -> AsyncIterator[tuple[Pods, str]]:
    """The pods on Kubernetes, and the id of their run. Raises OperatorError."""
    try:
        # Imported only for this backend, because its packages are an extra.
        from evershell.fleet.kubernetes.api import (
            ApiError,
            NotConfiguredError,
            UnreachableError,
        )
        from evershell.fleet.kubernetes.kubernetes_pods import KubernetesPods
    except ModuleNotFoundError as error:
        raise OperatorError(
            "POD_IMAGE is set, but the client of Kubernetes is not installed. Install the extra "
            "`kubernetes` of evershell."
        ) from error
    command = shlex.split(settings.agent_command)
    template = PodTemplate.read(settings, command or ["python3", "-P", "-m", "evershell.agents"])
    opening = KubernetesPods.open(
        "",
        template,
        _first_spec_for(settings, pod_tokens, certificates, FILES_DIR, AGENT_PORT),
        start_seconds=settings.pod_start_seconds,
        end_seconds=_END_SECONDS,
    )
    async with AsyncExitStack() as stack:
        try:
            pods = await stack.enter_async_context(opening)
        except (ApiError, NotConfiguredError, UnreachableError) as error:
            raise OperatorError(f"The Kubernetes cluster cannot be used: {error}.") from error
        log.info("pods_on_kubernetes", namespace_id=pods.run_id, image=settings.pod_image)
        yield pods, pods.run_id


def spec_for(
    settings: Settings,
    pod_tokens: PodTokens,
    certificates: "AgentCertificates | None",
    pod_isolation: isolation.Isolation | None = None,
) -> Callable[[AgentIdentity], PodSpec]:
    """A function that makes the spec of an agent. It raises OSError if keys cannot be read."""
    pod_isolation = pod_isolation or isolation.NoIsolation()
    tool_filter = base64.b64encode(pod_isolation.tool_filter).decode()

    def whole(agent: AgentIdentity) -> PodSpec:
        tls = certificates.agent(agent) if certificates is not None else None
        keys = _agent_keys(settings)
        return PodSpec(
            workspace_id=agent.workspace_id,
            epoch=agent.epoch,
            runtime_addresses=settings.runtime_addresses,
            runtime_secret=pod_tokens.runtime_secret(
                agent.workspace_id, agent.epoch, agent.signing_key
            ).hex(),
            signal_secret=pod_tokens.signal_secret(
                agent.workspace_id, agent.epoch, agent.signing_key
            ).hex(),
            tls_certificate=tls.certificate if tls else "",
            tls_key=tls.private_key if tls else "",
            tls_trusted=tls.trusted if tls else "",
            model=settings.model,
            openai_base_url=settings.openai_base_url,
            openai_api_key=keys.get("OPENAI_API_KEY", settings.openai_api_key.get_secret_value()),
            keys=keys,
            model_timeout_seconds=settings.model_timeout_seconds,
            tool_timeout_seconds=settings.tool_timeout_seconds,
            crash_points_dir=crash_points.FOLDER,
            bwrap=pod_isolation.bwrap,
            tool_filter=tool_filter,
            tool_memory_mb=settings.tool_memory_mb,
            tool_processes=TOOL_PROCESSES,
            tool_file_mb=_TOOL_FILE_MB,
            tool_has_network=settings.tool_network == "host",
        )

    return whole


def _first_spec_for(
    settings: Settings,
    pod_tokens: PodTokens,
    certificates: "AgentCertificates | None",
    files_dir: str,
    listen_port: int,
) -> Callable[[AgentIdentity], PodSpec]:
    """A function that makes the spec with which an agent on Kubernetes starts.

    The agent's tools can read this spec too. Its only secrets are a bootstrap token, which is no
    longer valid once the agent registers, and with AGENT_TLS the key of a certificate. The agent
    gets its other secrets by calling Bootstrap.
    """

    def first(agent: AgentIdentity) -> PodSpec:
        tls = certificates.agent(agent) if certificates is not None else None
        return PodSpec(
            workspace_id=agent.workspace_id,
            epoch=agent.epoch,
            runtime_addresses=settings.runtime_addresses,
            runtime_secret="",
            signal_secret="",
            bootstrap_token=pod_tokens.bootstrap_token(agent.workspace_id, agent.epoch),
            tls_certificate=tls.certificate if tls else "",
            tls_key=tls.private_key if tls else "",
            tls_trusted=tls.trusted if tls else "",
            files_dir=files_dir,
            listen_host="",
            listen_port=listen_port,
        )

    return first


def _agent_keys(settings: Settings) -> dict[str, str]:
    """The keys of agents. Raises OSError if their file cannot be read or is not valid."""
    if settings.agent_keys_file is None:
        return {}
    try:
        keys = json.loads(settings.agent_keys_file.read_text())
    except OSError as error:
        # This text becomes the reason for the failure of the workspace, so it names the setting.
        problem = f"AGENT_KEYS_FILE cannot be read: {error.strerror}"
        raise OSError(error.errno, problem) from error
    except ValueError:
        # Raised without its cause, because the cause quotes the file.
        raise OSError(errno.EINVAL, "AGENT_KEYS_FILE is not valid JSON") from None
    if not isinstance(keys, dict) or not all(
        isinstance(key, str) and len(key) >= _MIN_KEY_CHARACTERS for key in keys.values()
    ):
        problem = "AGENT_KEYS_FILE is not a JSON object whose values are texts"
        raise OSError(errno.EINVAL, f"{problem} of at least {_MIN_KEY_CHARACTERS} characters")
    return keys
