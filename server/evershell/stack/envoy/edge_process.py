"""Starts Envoy's processes by hot restart, and asks the running process for its state.

Hot restart lets a new process take the listening sockets over from its predecessor:
https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/operations/hot_restart
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx

from evershell.stack.envoy import config as envoy

# How long a process still answers on its open connections after its successor has taken over.
DRAIN_SECONDS = 4
# Base ids are less than this: Envoy multiplies them by ten and stores the product in 32 bits.
_BASE_IDS = 2**28


class EdgeProcess:
    """The running process of Envoy.

    A new process finds its predecessor by the base id, which is the same for both, and has the next
    restart epoch. It takes over the listening sockets; the predecessor answers its open calls and
    ends. A process that is started after a crash gets a new base id and epoch 0, so that remains of
    the dead process cannot prevent the start.
    """

    def __init__(self, settings: envoy.Edge, config_path: Path) -> None:
        self.settings = settings
        self._config_path = config_path
        self._base_id = 0
        self._epoch = 0

    def configure(self, render: Callable[[Path], None] | None = None) -> None:
        """Validates and writes the configuration for later processes. Raises OperatorError.

        `render` writes the configuration, and may raise OperatorError. Without `render`, this
        version of the service writes it.
        """
        # An invalid configuration does not replace the last valid one, which Envoy needs if it is
        # restarted after a crash.
        candidate_path = self._config_path.with_name(f"next-{self._config_path.name}")
        (render or partial(envoy.render, self.settings))(candidate_path)
        envoy.validate(candidate_path)
        candidate_path.replace(self._config_path)

    def first(self) -> list[str]:
        """The command for a process without a predecessor."""
        self.clear()
        self._base_id, self._epoch = 1 + secrets.randbelow(_BASE_IDS - 1), 0
        return self._command()

    def next(self) -> list[str]:
        """The command for a process that takes over from the running one."""
        self._epoch += 1
        return self._command()

    def clear(self) -> None:
        """Removes the shared memory that Envoy's processes have left."""
        Path(f"/dev/shm/envoy_shared_memory_{self._base_id * 10}").unlink(missing_ok=True)  # noqa: S108 - Envoy's own name

    async def is_live(self) -> bool:
        """Whether the process that runs the last command serves, and so has taken over."""
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
        """The addresses of the workers to which Envoy sends calls."""
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
        """Stops accepting connections, and returns when no call is in flight or after the limit.

        Each open connection is closed after its next answer. `end_waits` is called repeatedly. It
        makes the workers answer calls with a `wait` at once and close their streams.
        """
        until = time.monotonic() + limit_seconds
        # Fails if Envoy does not run, and then there are no calls to wait for.
        with suppress(httpx.TransportError):
            await self._ask("POST", envoy.START_DRAIN)
            await self._ask("POST", "/drain_listeners")
            while time.monotonic() < until and await self._count_calls():
                end_waits()
                await asyncio.sleep(0.05)

    async def _count_calls(self) -> int:
        stats = await self._ask(
            "GET", r"/stats?format=json&filter=^http\.(rest|grpc)\.downstream_rq_active$"
        )
        return sum(stat["value"] for stat in json.loads(stats)["stats"])

    async def _ask(self, method: str, path: str) -> str:
        # The socket uses plain text. Without `verify=False`, httpx would read the certificates of
        # all authorities each time.
        transport = httpx.AsyncHTTPTransport(uds=str(self.settings.admin_socket), verify=False)
        async with httpx.AsyncClient(transport=transport, timeout=1.0) as client:
            return (await client.request(method, f"http://admin{path}")).text

    def _command(self) -> list[str]:
        options = (
            f"--base-id {self._base_id} --restart-epoch {self._epoch}"
            f" --drain-time-s {DRAIN_SECONDS} --parent-shutdown-time-s {DRAIN_SECONDS}"
        )
        return envoy.command(self._config_path, *options.split(), *envoy.DRAIN_AT_ONCE)
