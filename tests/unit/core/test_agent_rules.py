"""What an agent may send."""

from dataclasses import replace
from typing import Any

import pytest

from evershell.core.agent_rules import (
    ITERATION_BYTES,
    MAX_EVENTS,
    TASK_BYTES,
    BreachError,
    check_address,
    check_events,
)
from evershell.core.change import Locked
from evershell.core.task import (
    MAX_CALL_TOKENS,
    MAX_TOOL_CALLS,
    IterationCompleted,
    TaskStatus,
)
from tests.support.world import iteration, locked_busy
from tests.unit.core.committing import commit


def with_task(**fields: Any) -> Locked:
    locked = locked_busy(fields.pop("status", TaskStatus.RUNNING))
    assert locked.task is not None
    return replace(locked, task=replace(locked.task, **fields))


@pytest.mark.parametrize(
    ("address", "of_machine", "of_cluster"),
    [
        ("127.0.0.1:50051", True, False),
        ("[::1]:1", True, False),
        ("10.1.2.3:65535", False, True),
        ("[fd00::7]:50052", False, True),
        ("169.254.169.254:80", False, False),
        ("[fe80::1%eth0]:80", False, False),
        # Some clusters give their pods such addresses.
        ("100.64.0.1:80", False, True),
        ("240.0.0.1:80", False, True),
        # These addresses are, or contain, an address of the machine or of its metadata service.
        ("[::ffff:127.0.0.1]:80", False, False),
        ("[::ffff:169.254.169.254]:80", False, False),
        ("[::ffff:0:169.254.169.254]:80", False, False),
        ("[64:ff9b::a9fe:a9fe]:80", False, False),
        ("[2002:a9fe:a9fe::1]:80", False, False),
        ("[::169.254.169.254]:80", False, False),
        ("[fd00:ec2::254]:80", False, False),
        ("[fd20:ce::254]:80", False, False),
        ("100.100.100.200:80", False, False),
        ("192.0.0.192:80", False, False),
        ("168.63.129.16:80", False, False),
        ("0.0.0.0:80", False, False),
        # These are not the IP address and the port of one machine.
        ("224.0.0.1:80", False, False),
        ("localhost:80", False, False),
        ("unix:/run/docker.sock", False, False),
        ("127.0.0.1", False, False),
        ("127.0.0.1:", False, False),
        ("127.0.0.1:0", False, False),
        ("127.0.0.1:65536", False, False),
        ("127.0.0.1:\u0663", False, False),
        ("127.0.0.1:1\0", False, False),
        ("127.0.0.1:" + "1" * 10_000, False, False),
        ("\0", False, False),
        ("", False, False),
    ],
)
def test_an_agent_registers_the_address_of_a_pod(
    address: str, of_machine: bool, of_cluster: bool
) -> None:
    for on_loopback, elsewhere, is_allowed in (
        (True, False, of_machine),
        (False, True, of_cluster),
        (True, True, of_machine or of_cluster),
    ):
        if is_allowed:
            check_address(address, on_loopback=on_loopback, elsewhere=elsewhere)
        else:
            with pytest.raises(BreachError):
                check_address(address, on_loopback=on_loopback, elsewhere=elsewhere)


def _payload(
    model_call: Any = None, tool_call: Any = None, tool_calls: Any = None
) -> dict[str, Any]:
    payload = {"model_call": model_call, "tool_call": tool_call, "tool_calls": tool_calls}
    return {name: value for name, value in payload.items() if value is not None}


_CALL: dict[str, Any] = {"result": {}}


@pytest.mark.parametrize(
    "payload",
    [
        _payload(),
        _payload({"input_tokens": "-1"}),
        _payload({"output_tokens": str(MAX_CALL_TOKENS + 1)}),
        _payload({"duration_ms": "-1"}),
        _payload({"status": 99}),
        _payload({}, {"name": "shell"}),
        _payload({}, {"result": {}, "duration_ms": "-1"}),
        _payload({}, {"result": {"status": 99}}),
        _payload({}, {"result": {"truncated_bytes": "-1"}}),
        _payload({}, _CALL, [_CALL, {"name": "shell"}]),
        _payload({}, _CALL, [_CALL, {"result": {"status": 99}}]),
        _payload({}, _CALL, [_CALL] * (MAX_TOOL_CALLS + 1)),
        _payload({}, None, [_CALL, _CALL]),
        _payload({}, _CALL, [{"name": "other", **_CALL}, _CALL]),
    ],
)
def test_an_iteration_has_its_parts_and_possible_values(payload: dict[str, Any]) -> None:
    with pytest.raises(BreachError):
        check_events([IterationCompleted(1, payload)])


def test_the_largest_values_and_the_longest_commit_are_allowed() -> None:
    largest = iteration(1, input_tokens=MAX_CALL_TOKENS, output_tokens=MAX_CALL_TOKENS)
    check_events([largest] * MAX_EVENTS)
    check_events([IterationCompleted(1, _payload({}, _CALL, [_CALL] * MAX_TOOL_CALLS))])
    with pytest.raises(BreachError):
        check_events([largest] * (MAX_EVENTS + 1))
    with pytest.raises(BreachError):
        check_events([iteration(0)])


def test_a_task_has_at_most_its_iterations() -> None:
    locked = with_task(max_iterations=2)
    change = commit(locked, iteration(1), iteration(2))
    assert change.task is not None and change.task.iterations == 2
    with pytest.raises(BreachError, match="limit of 2 iterations"):
        commit(Locked(change.workspace, change.task), iteration(3))


def test_an_iteration_belongs_to_a_task_that_was_started() -> None:
    with pytest.raises(BreachError, match="before the start"):
        commit(with_task(status=TaskStatus.DELIVERED), iteration(1))


def test_the_bytes_of_a_task_have_a_limit() -> None:
    locked = with_task(max_iterations=2)
    largest = TASK_BYTES + 2 * ITERATION_BYTES
    change = commit(locked, replace(iteration(1), size_bytes=largest))
    assert change.task is not None and change.task.committed_bytes == largest
    # If the commit is repeated, its bytes do not count again.
    full = Locked(change.workspace, change.task)
    assert commit(full, replace(iteration(1), size_bytes=1)).task == change.task
    with pytest.raises(BreachError, match="bytes"):
        commit(full, replace(iteration(2), size_bytes=1))
