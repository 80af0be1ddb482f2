"""Workers that come and go behind a DNS name, as with a headless service.

The edge and the agents know only the name. Each worker has its own address, and all have the same
port.
"""

import shutil
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
from dnslib import QTYPE, RR, A, DNSRecord
from prometheus_client.parser import text_string_to_metric_families

from tests.support import faults
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Stack
from tests.support.waiting import eventually

NAME = "workers.evershell.test"
# The time limit for a worker to start, which takes long on a busy machine.
START_SECONDS = 40.0
# Like terminationGracePeriodSeconds of the workers in a cluster, without the pause of preStop.
END_SECONDS = 15.0
# How long the edge may take to resolve the name, and to check the health of a new worker.
FOUND_SECONDS = 40.0


class NamedWorkers:
    """A stack whose edge and agents find the workers by a DNS name."""

    def __init__(self, folder: Path, resources: ExitStack, **environment: str) -> None:
        """Starts the stack with one worker, to which the name refers."""
        self._folder = folder
        self.dns = Dns(NAME)
        resources.enter_context(self.dns.running())
        # A command prefix with which a program can resolve the name.
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
            f"{NAME}:{self.port}",
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
        """Starts a worker, and adds its address to the name once it is ready.

        Returns the address.
        """
        address = self.start_unnamed_worker()
        self.add(address)
        return address

    def start_unnamed_worker(self) -> str:
        """Starts a worker to which the name does not refer. Returns its address when it serves."""
        address = next(self._new_addresses)
        self.running[address] = self._run(
            "serve",
            LISTEN_HOST=address,
            METRICS_ADDRESS=f"{address}:{self._metrics_port}",
        )
        eventually(lambda: self._health(address) == "SERVING", START_SECONDS)
        return address

    def add(self, address: str) -> None:
        """Adds the address of a worker to the name."""
        self.dns.addresses = [*self.dns.addresses, address]

    def remove(self, address: str) -> None:
        """Removes the address of a worker from the name."""
        self.dns.addresses = [each for each in self.dns.addresses if each != address]

    def end_worker(self, address: str) -> None:
        """Ends a worker as a cluster does: once it drains, its address is removed from the name."""
        process = self.running.pop(address)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: self._health(address) != "SERVING")
        self.remove(address)
        assert process.wait(END_SECONDS) == 0

    def end_first_worker(self) -> None:
        """Ends the stack's own worker.

        The supervisor restarts it, but the name no longer refers to it.
        """
        self.remove("127.0.0.1")
        (pid,) = self.stack.pids("serve")
        self.stack.terminate(pid)
        eventually(lambda: self.stack.pids("serve") not in ([], [pid]))

    def await_found(self, address: str) -> None:
        """Waits until the edge calls the worker. A cluster instead pauses in preStop."""
        rest = self.stack.rest()

        def is_called() -> bool:
            rest.get("/v1/workspaces")
            return self.calls(address, "ListWorkspaces") > 0

        eventually(is_called, FOUND_SECONDS)

    def calls(self, address: str, rpc: str) -> int:
        """Returns how many calls of this RPC the worker has answered."""
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
        """Ends all programs at once, because each one takes seconds to drain."""
        running = [process for process in self._programs if process.is_running()]
        for process in running:
            process.terminate()
        for process in running:
            process.wait(END_SECONDS)


# The lifetime of an answer, as in a cluster's DNS. A client that keeps an answer this long misses
# changes.
TTL_SECONDS = 30


class Dns:
    """A DNS server for one name, which answers with the addresses of a headless service."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.addresses: Sequence[str] = ()
        self.port = 0
        self.ttl_seconds = TTL_SECONDS
        self._cache_seconds = 0.0
        # When the addresses were cached, and the cached addresses.
        self._cached_at = 0.0
        self._cached: Sequence[str] = ()
        # How many queries for the addresses the server has answered.
        self.queries = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), self._handler())
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def cache(self, seconds: float) -> None:
        """Makes the server cache its addresses for `seconds` from now on; 0 turns this off."""
        self._cache_seconds = seconds
        self._cached_at, self._cached = time.monotonic(), self.addresses

    def answer(self) -> tuple[Sequence[str], int]:
        """Returns the addresses, and for how many seconds a client may cache them."""
        age = time.monotonic() - self._cached_at
        if age >= self._cache_seconds:
            self.cache(self._cache_seconds)
            age = 0.0
        return self._cached, max(0, self.ttl_seconds - int(age))

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        dns = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                packet, connection = self.request
                question = DNSRecord.parse(packet)
                answer = question.reply()
                asked = str(question.q.qname).rstrip(".")
                if asked == dns.name and QTYPE[question.q.qtype] == "A":
                    dns.queries += 1
                    addresses, ttl = dns.answer()
                    for address in addresses:
                        answer.add_answer(RR(dns.name, QTYPE.A, rdata=A(address), ttl=ttl))
                connection.sendto(answer.pack(), self.client_address)

        return Handler


def resolving_by(dns: Dns, folder: Path) -> list[str]:
    """Returns a command that runs its arguments with `dns` as the only DNS server."""
    unshare = shutil.which("unshare")
    assert unshare is not None
    path = folder / "resolv.conf"
    path.write_text(f"nameserver 127.0.0.1:{dns.port}\noptions attempts:2 timeout:1\n")
    script = f'mount --bind {path} /etc/resolv.conf && exec "$@"'
    return [unshare, "--mount", "/bin/sh", "-c", script, "sh"]
