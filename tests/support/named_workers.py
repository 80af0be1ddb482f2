"""Workers that come and go behind a name, as on a headless service.

The edge and the agents know only the name. Each worker has an address of its own and the same port.
"""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.support import faults
from tests.support.dns import Dns, resolving_by
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Stack
from tests.support.waiting import eventually

NAME = "workers.evershell.test"
# A busy machine takes long to start a worker.
START_SECONDS = 40.0
# terminationGracePeriodSeconds of the workers, without the pause of preStop.
END_SECONDS = 15.0
# Until the edge has asked for the addresses, and for the health of a new one.
FOUND_SECONDS = 40.0


class NamedWorkers:
    """A stack whose edge and agents find the workers by a name."""

    def __init__(self, folder: Path, resources: ExitStack, **environment: str) -> None:
        """Starts the stack with one worker, which has the name."""
        self._folder = folder
        self.dns = Dns(NAME)
        resources.enter_context(self.dns.running())
        # Runs a command that knows the name.
        self.runner = resolving_by(self.dns, folder)
        rest_port, grpc_port, self.port, self._metrics_port = free_ports(4)
        self.dns.addresses = ["127.0.0.1"]
        self.stack = Stack(
            folder / "state",
            WORKERS="1",
            SERVER_PORT=str(self.port),
            RUNTIME_SERVICE=f"{NAME}:{self.port}",
            **environment,
        )
        self.stack.runner = self.runner
        resources.callback(self.stack.kill_if_running)
        self.stack.start()
        self._environment = psutil.Process(self.stack.pids("serve")[0]).environ()
        self.running: dict[str, psutil.Popen] = {}
        self._programs: list[psutil.Popen] = []
        resources.callback(self._end_programs)
        self._new_addresses = (f"127.0.0.{number}" for number in range(2, 250))
        self._run(
            "edge",
            EDGE_WORKERS=f"{NAME}:{self.port}",
            REST_PORT=str(rest_port),
            GRPC_PORT=str(grpc_port),
            TMPDIR=str(folder),
        )
        # Tests call through this edge.
        self.stack.ready["rest_url"] = f"http://127.0.0.1:{rest_port}"
        eventually(self._edge_serves)

    def _edge_serves(self) -> bool:
        try:
            return self.stack.rest("").client.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def start_worker(self) -> str:
        """Starts a worker, which gets the name when it is ready. Returns its address."""
        address = self.start_unnamed_worker()
        self.add(address)
        return address

    def start_unnamed_worker(self) -> str:
        """Starts a worker and waits until it is ready. Returns its address."""
        address = next(self._new_addresses)
        self.running[address] = self._run(
            "serve",
            LISTEN_HOST=address,
            METRICS_HOST=address,
            METRICS_PORT=str(self._metrics_port),
        )
        eventually(lambda: self._health(address) == "SERVING", START_SECONDS)
        return address

    def add(self, address: str) -> None:
        """Gives the name to a worker."""
        self.dns.addresses = [*self.dns.addresses, address]

    def remove(self, address: str) -> None:
        """Takes the name from a worker."""
        self.dns.addresses = [each for each in self.dns.addresses if each != address]

    def end_worker(self, address: str, *, unready_first: bool) -> None:
        """Ends a worker as a cluster does. It loses the name before or after it drains."""
        process = self.running.pop(address)
        if not unready_first:
            self.remove(address)
        process.send_signal(signal.SIGTERM)
        if unready_first:
            eventually(lambda: self._health(address) != "SERVING")
            self.remove(address)
        assert process.wait(END_SECONDS) == 0

    def end_first_worker(self) -> None:
        """Ends the worker of the stack, which starts again, but without the name."""
        self.remove("127.0.0.1")
        (pid,) = self.stack.pids("serve")
        self.stack.terminate(pid)
        eventually(lambda: self.stack.pids("serve") not in ([], [pid]))

    def await_found(self, address: str) -> None:
        """Waits until the edge calls the worker, as the pause of preStop does in a cluster."""
        rest = self.stack.rest()

        def is_called() -> bool:
            rest.get("/v1/workspaces")
            return self.calls(address, "ListWorkspaces") > 0

        eventually(is_called, FOUND_SECONDS)

    def calls(self, address: str, rpc: str) -> int:
        """How many calls of this method the worker has answered."""
        url = f"http://{address}:{self._metrics_port}/metrics"
        families = text_string_to_metric_families(httpx.get(url, trust_env=False).text)
        return sum(
            int(sample.value)
            for family in families
            for sample in family.samples
            if sample.name == "evershell_rpc_seconds_count" and sample.labels["rpc"] == rpc
        )

    def _health(self, address: str) -> str:
        return faults.health_of(f"{address}:{self.port}")

    def _run(self, *command: str, **environment: str) -> psutil.Popen:
        with (self._folder / f"{command[0]}.log").open("ab") as log:
            process = psutil.Popen(
                [*self.runner, sys.executable, "-m", "evershell.commands", *command],
                cwd=ROOT,
                env=self._environment | environment,
                stdout=log,
                stderr=log,
            )
        self._programs.append(process)
        return process

    def _end_programs(self) -> None:
        """Ends all at once, because each takes seconds to drain."""
        running = [process for process in self._programs if process.is_running()]
        for process in running:
            process.terminate()
        for process in running:
            process.wait(END_SECONDS)
