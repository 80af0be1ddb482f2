"""The process of Envoy that runs: how the next one takes over from it, and what it says of itself
and of the workers.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx

from server.stack.envoy import config as envoy

# After another has taken over: how long a process still answers on the connections that it has.
LEAVE_SECONDS = 4
_ADMIN_SECONDS = 1.0
_POLL_SECONDS = 0.05
# Envoy multiplies it by ten, and keeps it in 32 bits.
_BASE_IDS = 2**28


class EdgeProcess:
    """Knows which process of Envoy runs.

    Processes that follow each other have the same base id, by which they find each other, and count
    up the epoch: each takes the listening sockets from the one before, which then answers what it
    has and ends. One that follows a crash begins anew, with a base id that no other has, so that
    nothing of the dead one is in its way.
    """

    def __init__(self, settings: envoy.Edge, config_path: Path) -> None:
        """The configuration is written to `config_path`."""
        self.settings = settings
        self._config_path = config_path
        self._base_id = 0
        self._epoch = 0

    def configure(self) -> None:
        """Writes the configuration for the processes to come, once Envoy has agreed to it. Raises
        EdgeConfigurationError.
        """
        # What is refused does not replace what was taken, with which Envoy starts again should it
        # die.
        candidate_path = self._config_path.with_name(f"next-{self._config_path.name}")
        envoy.render(self.settings, candidate_path)
        envoy.validate(candidate_path)
        candidate_path.replace(self._config_path)

    def first(self) -> list[str]:
        """The command for a process that follows no other."""
        self.clear()
        self._base_id, self._epoch = 1 + secrets.randbelow(_BASE_IDS - 1), 0
        return self._command()

    def next(self) -> list[str]:
        """The command for a process that takes over from the one that runs."""
        self._epoch += 1
        return self._command()

    def clear(self) -> None:
        """Removes what Envoy leaves in the machine's shared memory."""
        Path(f"/dev/shm/envoy_shared_memory_{self._base_id * 10}").unlink(missing_ok=True)  # noqa: S108 - Envoy's own name

    async def is_live(self) -> bool:
        """Whether the process of the last command serves: if it was to take over, it has."""
        try:
            info = json.loads(await self._ask("GET", "/server_info"))
        except (httpx.TransportError, ValueError):
            return False
        options = info["command_line_options"]
        return (info["state"], int(options["base_id"]), options["restart_epoch"]) == (
            "LIVE",
            self._base_id,
            self._epoch,
        )

    async def healthy_workers(self) -> set[str]:
        """The addresses of the workers to which it sends calls."""
        try:
            clusters = json.loads(await self._ask("GET", "/clusters?format=json"))[
                "cluster_statuses"
            ]
        except (httpx.TransportError, ValueError):
            return set()
        hosts = next(cluster for cluster in clusters if cluster["name"] == "control_plane").get(
            "host_statuses", []
        )
        return {
            f"{host['address']['socket_address']['address']}:{host['address']['socket_address']['port_value']}"
            for host in hosts
            if host["health_status"] == {"eds_health_status": "HEALTHY"}
        }

    async def drain(self, end_waits: Callable[[], None], limit_seconds: float) -> None:
        """Takes no new connection, closes each that there is behind its next answer, and returns
        when no call is in hand.

        `end_waits` has the calls that wait answered.
        """
        until = time.monotonic() + limit_seconds
        # It may not run yet, or be gone: then there is nothing to wait for.
        with suppress(httpx.TransportError):
            await self._ask("POST", "/drain_listeners?graceful&skip_exit")
            await self._ask("POST", "/drain_listeners")
            while time.monotonic() < until and await self._calls():
                end_waits()
                await asyncio.sleep(_POLL_SECONDS)

    async def _calls(self) -> int:
        counted = await self._ask(
            "GET", r"/stats?format=json&filter=^http\.(rest|grpc)\.downstream_rq_active$"
        )
        return sum(stat["value"] for stat in json.loads(counted)["stats"])

    async def _ask(self, method: str, path: str) -> str:
        transport = httpx.AsyncHTTPTransport(uds=str(self.settings.admin_socket))
        async with httpx.AsyncClient(transport=transport, timeout=_ADMIN_SECONDS) as client:
            return (await client.request(method, f"http://admin{path}")).text

    def _command(self) -> list[str]:
        # Clients are told at once to come back on another connection, and not by and by.
        options = (
            f"--base-id {self._base_id} --restart-epoch {self._epoch} --drain-strategy immediate"
        )
        options += f" --drain-time-s {LEAVE_SECONDS} --parent-shutdown-time-s {LEAVE_SECONDS}"
        return envoy.command(self._config_path, *options.split())
