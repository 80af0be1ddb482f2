"""Arguments and options: which ones the client refuses without a call, and what the others do."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from evershell.workspace.v1 import task_pb2, workspace_pb2

from evershell.client import (
    Client,
    ConfigurationError,
    TaskFilter,
    TaskLimits,
    ValidationError,
)
from evershell.client._repeats import OrganizationWatch
from tests.unit.client.fake_channel import TIMEOUT_SECONDS, Service, start

# One half of a surrogate pair.
HALF = "\udcff"
LIMITS = TaskLimits(max_total_tokens=2**63)


def of_cost(cost: str) -> TaskLimits:
    return TaskLimits(max_cost=Decimal(cost))


# In UTC, this moment is before the year 1.
TOO_EARLY = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))


def submitted(**fields: Any) -> TaskFilter:
    return TaskFilter(submitted_by="user_1", **fields)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        # An empty id, for example from an unset variable, must not cancel another task.
        (lambda client: client.cancel("ws_1", ""), "task_id"),
        (lambda client: client.cancel_and_wait("ws_1", ""), "task_id"),
        (lambda client: client.watch("ws_1", task_id=""), "task_id"),
        (
            lambda client: client.cancel_tasks(filter=TaskFilter(created_by_user_id="")),
            "created_by_user_id",
        ),
        (lambda client: client.cancel_tasks(filter=TaskFilter(submitted_by="")), "submitted_by"),
        (lambda client: client.cancel_tasks(), "filter"),
        (lambda client: client.cancel_tasks(all=False, dry_run=True), "filter"),
        (lambda client: client.cancel_tasks(filter=TaskFilter()), "filter"),
        (lambda client: client.cancel_tasks(filter=TaskFilter(task_ids=("t",)), all=True), "all"),
        (lambda client: next(client.cancel_all_tasks(filter=TaskFilter(task_ids=()))), "task_ids"),
        # An iterator is true in Python even if it yields nothing.
        (lambda client: client.cancel_tasks(filter=submitted(task_ids=iter(()))), "task_ids"),
        # The service could not tell that these fields were given: empty fields are not sent.
        (lambda client: client.cancel_tasks(filter=submitted(task_ids=())), "task_ids"),
        (lambda client: client.cancel_tasks(filter=submitted(workspace_ids=())), "workspace_ids"),
        (lambda client: client.cancel_tasks(filter=submitted(metadata={})), "metadata"),
        (lambda client: list(client.list_workspaces(workspace_ids=iter(()))), "workspace_ids"),
        *(
            (lambda client, name=name: list(client.list_audit_entries(**{name: ""})), name)
            for name in ("workspace_id", "task_id", "actor_id", "rpc", "outcome")
        ),
        # These values do not fit into a message.
        (lambda client: client.cancel("ws_1", reason=HALF), "reason"),
        (lambda client: client.cancel("ws_1", wait=float("nan")), "wait"),
        (lambda client: client.cancel("ws_1", wait="10s"), "wait"),
        (lambda client: client.cancel("ws_1", force_after=1e30), "force_after"),
        (
            lambda client: client.cancel_tasks(filter=TaskFilter(submitted_before=TOO_EARLY)),
            "submitted_before",
        ),
        (lambda client: client.submit_task("ws_1", "x", max_iterations=2**31), "max_iterations"),
        (lambda client: client.submit_task("ws_1", "x", metadata={HALF: ""}), "metadata"),
        (lambda client: client.submit_task("ws_1", "x", limits=LIMITS), "limits"),
        (lambda client: client.submit_task("ws_1", "x", limits=of_cost("NaN")), "limits"),
        (lambda client: client.submit_task("ws_1", "x", limits=of_cost("1e30")), "limits"),
        (lambda client: client.submit_task("ws_1", "x", limits=of_cost("1e-10")), "limits"),
        (lambda client: client.submit_task("ws_1", "x", idempotency_key="ü"), "idempotency-key"),
        (lambda client: client.create_workspace(idempotency_key="a\nb"), "idempotency-key"),
        (lambda client: next(client.watch("ws_1", after=2**63)), "after"),
        (lambda client: list(client.list_tasks("ws_1", page_size=2**31)), "page_size"),
    ],
)  # fmt: skip
def test_a_field_is_refused(service: Service, call: Callable[[Client], Any], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        call(service.client)
    assert list(raised.value.fields) == [field]
    assert (raised.value.is_from_service, service.channel.timeouts) == (False, [])


def test_a_timeout_has_no_upper_limit(service: Service) -> None:
    # gRPC would treat an infinite deadline as one that has expired.
    call = start(service.client.with_options(timeout=float("inf")).get_workspace, "ws_1")
    service.take("GetWorkspace")[1].answer(workspace_pb2.Workspace(id="ws_1"))
    assert call.result(5).id == "ws_1"
    assert service.channel.timeouts == [1e9]
    limits = service.client._limits("WatchOrganization", 1e10, 60)
    assert OrganizationWatch(0, limits).remaining_seconds() == 1e9


def test_the_time_that_a_credential_takes_is_a_part_of_the_timeout(service: Service) -> None:
    def slow() -> str:
        service.clock.sleep_for(4)
        return "eyJ.slow"

    call = start(service.client.with_options(credential=slow).get_workspace, "ws_1")
    service.take("GetWorkspace")[1].answer(workspace_pb2.Workspace(id="ws_1"))
    assert call.result(5).id == "ws_1"
    assert service.channel.timeouts == [6]


def test_options_apply_to_the_calls_of_the_copy_only(service: Service) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = {"x-team": "blue", "x-plan": "free"}
    one = service.client.with_options(metadata=metadata, traceparent=trace)
    both = one.with_options(metadata={"x-plan": "paid"}, credential="sk_other")
    call = start(both.get_workspace, "ws_1")
    service.take("GetWorkspace")[1].answer(workspace_pb2.Workspace(id="ws_1"))
    assert call.result(5).id == "ws_1"
    expected = {"x-team": "blue", "x-plan": "paid", "traceparent": trace}
    assert expected.items() <= service.metadata.items()
    assert service.metadata["authorization"] == "Bearer sk_other"
    own = dict(service.client._headers())
    assert own["authorization"] == "Bearer sk_secret" and not expected.keys() & own.keys()


@pytest.mark.parametrize(
    "name", ["Authorization", "idempotency-key", "grpc-timeout", "x-evershell-edge", "data-bin", ""]
)
def test_reserved_names_are_refused(service: Service, name: str) -> None:
    with pytest.raises(ConfigurationError):
        service.client.with_options(metadata={name: "value"})


@pytest.mark.parametrize("value", ["a\nsecret", "ä secret", " secret", "\x00secret"])
def test_values_that_are_not_text_are_refused_and_not_shown(service: Service, value: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        service.client.with_options(metadata={"x-key": value})
    assert "secret" not in str(raised.value)


def test_a_method_has_a_timeout_of_its_own(service: Service) -> None:
    client = service.client.with_options(timeouts={"GetTask": 2, "WatchEvents": 3})
    for options in (
        {},
        {"max_retries": 1},
        {"timeout": 7},
        {"timeout": 7, "timeouts": {"GetTask": 1}},
    ):
        changed: Any = client.with_options(**options)
        for call, rpc, reply in (
            (lambda: changed.get_task("ws_1", "task_1"), "GetTask", task_pb2.Task()),
            (lambda: changed.get_workspace("ws_1"), "GetWorkspace", workspace_pb2.Workspace()),
        ):
            made = start(call)
            service.take(rpc)[1].answer(reply)
            made.result(5)
    # A timeout for all calls replaces the earlier timeouts of single methods.
    assert service.channel.timeouts == [2, TIMEOUT_SECONDS] * 2 + [7, 7, 1, 7]
    assert client._limits("WatchEvents", None, 60).connect_seconds == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": float("nan")}, "a number of seconds or a timedelta, not nan"),
        ({"timeout": "10s"}, "a number of seconds or a timedelta, not '10s'"),
        ({"timeouts": {"GetTask": 0}}, "timeout must be more than 0"),
        ({"timeouts": {"get_task": 1}}, "There is no method get_task"),
        ({"max_retries": -1}, "max_retries must not be negative"),
        ({"metadata": {"x-team": 5}}, "is not printable ASCII"),
        ({"traceparent": "ü"}, "traceparent is not printable ASCII"),
        ({"credential": "a b"}, "The credential is not valid"),
    ],
)
def test_options_that_are_not_valid_are_refused(
    service: Service, options: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        service.client.with_options(**options)
