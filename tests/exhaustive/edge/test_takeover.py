"""One process of Envoy follows another: on a restart, behind a crash, and at the end."""

import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from server.stack.envoy.config import Edge, EdgeConfigurationError, Tls
from server.stack.envoy.process import LEAVE_SECONDS, EdgeProcess
from server.stack.supervisor import Program, Supervisor
from tests.support.edge.certificates import Authority
from tests.support.edge.fixtures import short_directory
from tests.support.edge.stub import START_SECONDS, Stub, serving
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

    async def is_another_than(self, pid: int) -> bool:
        """And serves."""
        return self.pid != pid and await self.process.is_live()

    async def follow(self) -> int:
        """Has the next process take over; returns the id of the one before."""
        old = await self.supervisor.replace("envoy", self.process.next(), START_SECONDS)
        await eventually_async(self.process.is_live)
        return old.pid

    def left_in_memory(self) -> Path:
        """What the process that runs would leave there by itself."""
        command = psutil.Process(self.pid).cmdline()
        return Path("/dev/shm") / f"envoy_shared_memory_{command[command.index('--base-id') + 1]}0"  # noqa: S108 - Envoy's choice


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
    """Behind the edge, and its address."""
    stub = Stub()
    with serving(stub) as address:
        yield stub, address


@pytest.fixture
async def running(
    worker: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Supervised]:
    async with supervised(short_directory(tmp_path_factory), worker[1]) as edge:
        yield edge


async def test_the_next_process_takes_over_and_the_one_before_answers_what_it_has(
    running: Supervised,
) -> None:
    for _ in range(2):
        async with httpx.AsyncClient(base_url=running.url, trust_env=False) as kept:
            assert "connection" not in (await kept.get(CALL)).headers
            old = await running.follow()
            answer = await kept.get(CALL)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            answer = await kept.get(CALL)
            assert answer.status_code == 200
            assert "connection" not in answer.headers
            await running.supervisor.left()
            # The one that left took nothing with it, the admin socket neither.
            assert await running.is_another_than(old)
            assert await running.process.healthy_workers()
            assert (await kept.get(CALL)).status_code == 200


@pytest.mark.parametrize(
    "dies", ["before it has taken over", "while the one before leaves", "by itself"]
)
async def test_a_process_that_dies_is_followed_by_one_that_serves(
    running: Supervised, dies: str
) -> None:
    if dies != "by itself":
        await running.supervisor.replace("envoy", running.process.next(), LEAVE_SECONDS)
    if dies == "while the one before leaves":
        await eventually_async(running.process.is_live)
    dead = running.pid
    running.supervisor.send_signal(signal.SIGKILL, "envoy")
    await eventually_async(lambda: running.is_another_than(dead))
    await running.supervisor.left()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(running.url + CALL)).status_code == 200
        # It can be followed like any other.
        await running.follow()
        assert (await client.get(running.url + CALL)).status_code == 200


async def test_a_process_that_drains_answers_what_it_has_and_takes_nothing_new(
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
        assert "event" in await anext(lines)
        await running.process.drain(end_waits, START_SECONDS)
        await running.supervisor.stop("envoy")
        assert refused
        assert "unavailable" in "".join([line async for line in lines])


async def test_nothing_of_it_stays_in_memory(
    worker: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with supervised(short_directory(tmp_path_factory), worker[1]) as edge:
        first = edge.left_in_memory()
        assert first.exists()
        dead = edge.pid
        edge.supervisor.send_signal(signal.SIGKILL, "envoy")
        await eventually_async(lambda: edge.is_another_than(dead))
        assert not first.exists()
        second = edge.left_in_memory()
        await edge.follow()
        assert edge.left_in_memory() == second
        assert second.exists()
    assert not second.exists()


async def test_the_next_process_has_the_certificates_of_now_and_a_refused_configuration_changes_nothing(
    worker: tuple[Stub, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before, now = Authority(tmp_path, "before"), Authority(tmp_path, "now")
    old, new = before.issue("old"), now.issue("new")

    async def is_trusted(edge: Supervised, authority: Authority) -> bool:
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        try:
            async with httpx.AsyncClient(verify=context, trust_env=False) as client:
                return (await client.get(edge.url + CALL)).status_code == 200
        except httpx.ConnectError:
            return False

    tls = Tls(old.cert_file, old.key_file)
    async with supervised(short_directory(tmp_path_factory), worker[1], tls) as edge:
        assert await is_trusted(edge, before)
        shutil.copy(new.cert_file, old.cert_file)
        with pytest.raises(EdgeConfigurationError, match="does not belong"):
            edge.process.configure()
        shutil.copy(new.key_file, old.key_file)
        edge.process.configure()
        await edge.follow()
        assert await is_trusted(edge, now)
        assert not await is_trusted(edge, before)
