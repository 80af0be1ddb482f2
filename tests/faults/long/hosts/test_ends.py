"""A stack whose start fails, or whose test fails, leaves no process behind."""

from pathlib import Path

import psutil
import pytest

from tests.faults import network
from tests.faults.long.hosts import many_hosts
from tests.faults.long.hosts.many_hosts import HOSTS, ManyHosts
from tests.support.stack import Stack, processes_of, shared_memory


class _FailedError(Exception):
    pass


def test_a_failed_start_leaves_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fails as soon as the database is running."""
    network.require()

    def fail(*_: object) -> None:
        assert processes_of(stack.state_dir)
        raise _FailedError

    monkeypatch.setattr(many_hosts, "prepare_database", fail)
    with network.network(HOSTS) as hosts:
        stack = ManyHosts(tmp_path / "state", hosts)
        with pytest.raises(_FailedError), stack.ended():
            stack.start()
        assert processes_of(stack.state_dir) == []


def test_a_failed_test_leaves_no_agent(tmp_path: Path) -> None:
    """Kills the first process of a stack, so that no program of the stack ends the agents."""
    stack = Stack(tmp_path / "state")
    with pytest.raises(_FailedError), stack.ended():
        stack.start()
        programs = psutil.Process(stack.pid).children()
        (envoy,) = (each for each in programs if each.name() == "envoy")
        segment = shared_memory(envoy)
        stack.kill(stack.pid)
        raise _FailedError
    assert processes_of(stack.state_dir) == []
    # Envoy has ended together with the first process, so only this test can remove its shared
    # memory.
    segment.unlink()
