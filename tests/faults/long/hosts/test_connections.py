"""After a partition, no connection stays stuck, and no dead session stays in the database."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc.aio
import pytest
from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest

from evershell.agents.runtime_client import RuntimeStub, connect
from tests.faults.long.hosts.many_hosts import DATABASE, WORKERS, ManyHosts
from tests.faults.network import TEST, Network, both_ways, network, require
from tests.support.stack import ROOT
from tests.support.waiting import eventually, eventually_async

# Each test waits for timers of the kernel.
pytestmark = pytest.mark.soak

_PORT = 50051
_CALL_SECONDS = 1.0
# The kernel retransmits after 12.7 s, and not again before 25.5 s.
_CUT_SECONDS = 13.0
_SOON_SECONDS = 8.0


@contextmanager
def worker(hosts: Network) -> Iterator[str]:
    """Runs a worker on a separate host. Yields its address."""
    address = f"{hosts.address('worker')}:{_PORT}"
    command = [sys.executable, "-m", "tests.faults.long.hosts.heartbeat_server", address]
    with subprocess.Popen(
        hosts.command("worker", *command), cwd=ROOT, stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline()
            yield address
        finally:
            server.kill()


async def beats(stub: RuntimeStub) -> bool:
    try:
        await stub.Heartbeat(HeartbeatRequest(), timeout=_CALL_SECONDS)
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_an_agent_reaches_its_worker_soon_after_a_partition() -> None:
    """The agent reaches its worker long before the kernel would retransmit the lost packets."""
    require()
    with network(["worker"]) as hosts, worker(hosts) as address:
        channels, stubs = connect([address], None)
        stub = stubs[address]
        await eventually_async(lambda: beats(stub))
        with hosts.parted(*both_ways([TEST], ["worker"])):
            until = time.monotonic() + _CUT_SECONDS
            while time.monotonic() < until:
                assert not await beats(stub)
        await eventually_async(lambda: beats(stub), _SOON_SECONDS)
        for channel in channels:
            await channel.close()


def test_the_database_ends_the_sessions_of_a_host_that_is_gone(hosts: ManyHosts) -> None:
    """If these sessions stayed, each partition would use up connections, until none are left."""
    address = hosts.network.address(WORKERS[0])

    def sessions() -> int:
        with hosts.database() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE client_addr = %s::inet", (address,)
            ).fetchone()
        assert row is not None
        return int(row[0])

    assert sessions() > 0
    with hosts.network.parted(*both_ways(WORKERS[:1], [DATABASE])):
        eventually(lambda: sessions() == 0, 60)
    eventually(lambda: sessions() > 0, 60)
