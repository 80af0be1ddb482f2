"""Arguments that the client refuses, without a call."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from evershell.workspace.v1 import workspace_pb2

from evershell.client import (
    Client,
    ConfigurationError,
    TaskFilter,
    TaskLimits,
    ValidationError,
)
from tests.support.fake_channel import Service, start

# Half of a surrogate pair.
HALF = "\udcff"
LIMITS = TaskLimits(max_total_tokens=2**63)
# In UTC, this is before the year 1.
TOO_EARLY = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))


def submitted(**fields: Any) -> TaskFilter:
    return TaskFilter(submitted_by="user_1", **fields)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        # An unset variable must not cancel another task.
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
        # A generator is never empty, but may have no items.
        (lambda client: client.cancel_tasks(filter=submitted(task_ids=iter(()))), "task_ids"),
        # Beside another field, the service cannot see these.
        (lambda client: client.cancel_tasks(filter=submitted(task_ids=())), "task_ids"),
        (lambda client: client.cancel_tasks(filter=submitted(workspace_ids=())), "workspace_ids"),
        (lambda client: client.cancel_tasks(filter=submitted(metadata={})), "metadata"),
        *(
            (lambda client, name=name: list(client.list_audit_entries(**{name: ""})), name)
            for name in ("workspace_id", "task_id", "actor_id", "rpc", "outcome")
        ),
        # No message can hold these.
        (lambda client: client.cancel(HALF), "workspace_id"),
        (lambda client: client.cancel("ws_1", reason=HALF), "reason"),
        (lambda client: client.cancel("ws_1", wait=float("inf")), "wait"),
        (lambda client: client.cancel("ws_1", wait=float("nan")), "wait"),
        (lambda client: client.cancel("ws_1", force_after=1e30), "force_after"),
        (
            lambda client: client.cancel_tasks(filter=TaskFilter(submitted_before=TOO_EARLY)),
            "submitted_before",
        ),
        (lambda client: client.submit_task("ws_1", "x", max_iterations=2**31), "max_iterations"),
        (lambda client: client.submit_task("ws_1", "x", metadata={HALF: ""}), "metadata"),
        (
            lambda client: client.submit_task("ws_1", "x", limits=LIMITS),
            "limits",
        ),
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


@pytest.mark.parametrize("token", [None, b"sk_secret", 5])
def test_a_credential_that_is_no_text_is_refused(service: Service, token: Any) -> None:
    with pytest.raises(ConfigurationError, match="The credential is not valid"):
        service.client.with_options(credential=lambda: token).get_workspace("ws_1")


def test_a_timeout_has_no_upper_limit(service: Service) -> None:
    # gRPC would treat such a deadline as expired.
    call = start(service.client.with_options(timeout=float("inf")).get_workspace, "ws_1")
    service.take("GetWorkspace")[1].answer(workspace_pb2.Workspace(id="ws_1"))
    assert call.result(5).id == "ws_1"
    assert service.channel.timeouts == [1e9]
    assert service.client._watch("ws_1", 0, None, 1e10, 60).remaining_seconds() == 1e9


def test_a_wait_below_zero_does_not_shorten_the_call(service: Service) -> None:
    call = start(service.client.cancel, "ws_1", wait=-100)
    service.take("CancelTask")
    assert service.channel.timeouts == [10]
    assert not call.done()


def test_the_time_that_a_credential_takes_is_a_part_of_the_timeout(service: Service) -> None:
    def slow() -> str:
        service.clock.sleep_for(4)
        return "eyJ.slow"

    call = start(service.client.with_options(credential=slow).get_workspace, "ws_1")
    service.take("GetWorkspace")[1].answer(workspace_pb2.Workspace(id="ws_1"))
    assert call.result(5).id == "ws_1"
    assert service.channel.timeouts == [6]
