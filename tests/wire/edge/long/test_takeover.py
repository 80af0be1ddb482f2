"""One process of Envoy replaces another on a restart and after a crash, and the last one drains."""

import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx
import psutil
import pytest
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc

from evershell.core.errors import OperatorError
from evershell.stack.envoy.config import Edge, Tls
from evershell.stack.envoy.edge_process import DRAIN_SECONDS, EdgeProcess
from evershell.stack.supervisor import Program, Supervisor
from tests.support.edge.certificates import Authority, Certificate
from tests.support.edge.fixtures import short_directory
from tests.support.edge.stub import START_SECONDS, Stub, serving
from tests.support.lengths import smoke
from tests.support.ports import free_ports
from tests.support.waiting import eventually_async

CALL = "/v1/workspaces/ws_1"


@dataclass
class Supervised:
    """Envoy as a stack runs it."""

    url: str
    process: EdgeProcess
    supervisor: Supervisor

    @property
    def pid(self) -> int:
        return self.supervisor.pids()["envoy"]

    async def has_replaced(self, pid: int) -> bool:
        """Whether a process other than `pid` runs and serves."""
        return self.pid != pid and await self.process.is_live()

    async def replace(self) -> int:
        """Replaces the process by the next one, and returns the id of the old one."""
        old = await self.supervisor.replace("envoy", self.process.next(), START_SECONDS)
        await eventually_async(self.process.is_live)
        # Both processes serve until the old one learns that the new one has taken over.
        await eventually_async(lambda: not _listens(old.pid))
        return old.pid


def _listens(pid: int) -> bool:
    with suppress(psutil.Error):
        connections = psutil.Process(pid).net_connections("tcp")
        return any(each.status == psutil.CONN_LISTEN for each in connections)
    return False


@asynccontextmanager
async def supervised(
    directory: Path, worker: str, tls: Tls | None = None
) -> AsyncIterator[Supervised]:
    rest_port, grpc_port = free_ports(2)
    settings = Edge(rest_port, grpc_port, [worker], directory / "admin.sock", tls=tls)
    process = EdgeProcess(settings, directory / "envoy.yaml")
    process.configure()
    supervisor = Supervisor(directory)
    try:
        await supervisor.start(Program("envoy", process.first))
        await eventually_async(process.is_live)
        scheme = "https" if tls else "http"
        yield Supervised(f"{scheme}://127.0.0.1:{settings.rest_port}", process, supervisor)
    finally:
        await supervisor.stop_all()
        process.clear()


@pytest.fixture
def worker() -> Iterator[tuple[Stub, str]]:
    """The stub behind the edge, and its address."""
    stub = Stub()
    with serving(stub) as address:
        yield stub, address


@pytest.fixture
async def running(
    worker: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Supervised]:
    async with supervised(short_directory(tmp_path_factory), worker[1]) as edge:
        yield edge


async def test_the_next_process_takes_over_and_the_old_one_answers_its_calls(
    running: Supervised,
) -> None:
    for _ in range(2):
        async with httpx.AsyncClient(base_url=running.url, trust_env=False) as kept:
            assert "connection" not in (await kept.get(CALL)).headers
            old = await running.replace()
            answer = await kept.get(CALL)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            answer = await kept.get(CALL)
            assert answer.status_code == 200
            assert "connection" not in answer.headers
            await running.supervisor.wait_predecessors()
            # The old process did not remove anything that the new one needs, such as the admin
            # socket.
            assert await running.has_replaced(old)
            assert await running.process.healthy_workers()
            assert (await kept.get(CALL)).status_code == 200


DEATHS = ("before it has taken over", "while the old process leaves", "alone")


@pytest.mark.parametrize("dies", smoke(DEATHS, DEATHS[1:2]))
async def test_a_process_that_dies_is_replaced_by_one_that_serves(
    running: Supervised, dies: str
) -> None:
    if dies != "alone":
        await running.supervisor.replace("envoy", running.process.next(), DRAIN_SECONDS)
    if dies == "while the old process leaves":
        await eventually_async(running.process.is_live)
    dead = running.pid
    running.supervisor.send_signal(signal.SIGKILL, "envoy")
    await eventually_async(lambda: running.has_replaced(dead))
    await running.supervisor.wait_predecessors()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(running.url + CALL)).status_code == 200
        # A process that was started after a crash can be replaced as well.
        await running.replace()
        assert (await client.get(running.url + CALL)).status_code == 200


async def test_a_draining_process_finishes_its_calls_and_refuses_new_ones(
    worker: tuple[Stub, str], running: Supervised
) -> None:
    refused: list[bool] = []

    def end_waits() -> None:
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url + CALL, trust_env=False)
        refused.append(True)
        worker[0].release.set()

    async with (
        httpx.AsyncClient(trust_env=False, timeout=START_SECONDS) as client,
        client.stream("GET", f"{running.url}{CALL}/events") as stream,
    ):
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 1000"
        await running.process.drain(end_waits, START_SECONDS)
        await running.supervisor.stop("envoy")
        assert refused
        assert "unavailable" in "".join([line async for line in lines])


async def test_the_next_process_uses_the_new_certificates_unless_they_are_refused(
    worker: tuple[Stub, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old_authority, new_authority = Authority(tmp_path, "before"), Authority(tmp_path, "now")
    old, new = old_authority.issue("old"), new_authority.issue("new")

    async def is_trusted(edge: Supervised, authority: Authority) -> bool:
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        try:
            async with httpx.AsyncClient(verify=context, trust_env=False) as client:
                return (await client.get(edge.url + CALL)).status_code == 200
        except httpx.ConnectError:
            return False

    tls = Tls(old.cert_file, old.key_file)
    async with supervised(short_directory(tmp_path_factory), worker[1], tls) as edge:
        assert await is_trusted(edge, old_authority)
        shutil.copy(new.cert_file, old.cert_file)
        with pytest.raises(OperatorError, match="does not belong"):
            edge.process.configure()
        shutil.copy(new.key_file, old.key_file)
        edge.process.configure()
        await edge.replace()
        assert await is_trusted(edge, new_authority)
        assert not await is_trusted(edge, old_authority)


@pytest.mark.soak
async def test_callers_of_two_authorities_are_accepted_while_their_certificates_are_rotated(
    worker: tuple[Stub, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority, old, new = (Authority(tmp_path, name) for name in ("edge", "old", "new"))
    own, bundle = authority.issue("own"), tmp_path / "callers.pem"
    callers = {"old": old.issue("old caller"), "new": new.issue("new caller")}
    bundle.write_text(old.ca_file.read_text())

    async def accepted(edge: Supervised) -> set[str]:
        return {name for name, each in callers.items() if await _is_accepted(edge, each)}

    async def _is_accepted(edge: Supervised, caller: Certificate) -> bool:
        credentials = grpc.ssl_channel_credentials(
            authority.ca_file.read_bytes(),
            caller.key_file.read_bytes(),
            caller.cert_file.read_bytes(),
        )
        address = f"127.0.0.1:{edge.process.settings.grpc_port}"
        async with grpc.aio.secure_channel(address, credentials) as channel:
            stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
            try:
                await stub.CancelTask(
                    workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1"), timeout=10
                )
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                return False
        return True

    tls = Tls(own.cert_file, own.key_file, bundle)
    async with supervised(short_directory(tmp_path_factory), worker[1], tls) as edge:
        assert await accepted(edge) == {"old"}
        bundle.write_text(old.ca_file.read_text() + new.ca_file.read_text())
        edge.process.configure()
        await edge.replace()
        assert await accepted(edge) == {"old", "new"}
        bundle.write_text(new.ca_file.read_text())
        edge.process.configure()
        await edge.replace()
        assert await accepted(edge) == {"new"}
