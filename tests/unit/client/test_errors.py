"""The exceptions that the client raises for failed calls: each error slug has a class."""

import pickle
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import error_pb2

from evershell.api.status import RULES
from evershell.client import (
    CallError,
    DeadlineExceededError,
    EvershellError,
    TaskNotEndedError,
)
from evershell.client.answers import from_stream_error
from evershell.client.errors import BY_CODE
from evershell.core import errors
from evershell.core.errors import Failure
from tests.unit.client.fake_channel import Service, failed, start

UNREACHABLE = errors.agent_unreachable(
    "ws_1", "task_1", "recorded, not delivered", intent_recorded=True
)
# The service never sends these slugs. The client uses them for errors without details.
FALLBACKS = {"not_found", "method_not_allowed"}


def test_each_slug_that_a_grpc_caller_can_get_has_a_class() -> None:
    of_service = {slug for slug, rule in RULES.items() if not (rule.edge_only or rule.a2a_only)}
    slugs = of_service | FALLBACKS
    assert set(BY_CODE) == slugs
    for slug, error in BY_CODE.items():
        assert error.__name__.lower() == f"{slug.removesuffix('_error').replace('_', '')}error"
        assert error.__doc__
        assert issubclass(error, CallError) and issubclass(error, EvershellError)


@pytest.mark.parametrize(
    ("failure", "details"),
    [
        (errors.invalid({"reason": "too long"}), {"fields": {"reason": "too long"}}),
        (errors.permission_denied("no", ["workspace:write", "workspace:write:own"]),
         {"required": ["workspace:write", "workspace:write:own"]}),
        (errors.workspace_not_found("ws_1"),
         {"resource_type": "workspace", "resource_name": "ws_1"}),
        (UNREACHABLE, {"workspace_id": "ws_1", "task_id": "task_1", "intent_recorded": True}),
        (Failure("rate_limited", "Too many.", retry_after_seconds=0.25),
         {"retry_after_seconds": 0.25}),
        (Failure("internal", "A defect."), {}),
    ],
    ids=lambda value: getattr(value, "slug", ""),
)  # fmt: skip
def test_an_error_has_the_class_and_the_details_of_the_failure(
    service: Service, failure: Failure, details: dict[str, Any]
) -> None:
    call = start(service.client.cancel, "ws_1")
    service.take("CancelTask")[1].fail(failure)
    error = failed(call)
    assert type(error) is BY_CODE[failure.slug]
    assert (error.code, error.message, error.request_id) == (
        failure.slug,
        failure.message,
        "request_1",
    )
    assert error.details == details
    assert error.is_from_service
    assert error.http_status == RULES[failure.slug].http
    assert "sk_secret" not in repr(error) + str(error)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 # its own bytes
    assert (type(copy), copy.details, copy.request_id) == (type(error), details, "request_1")


@pytest.mark.parametrize(
    ("code", "slug"),
    [
        ("UNAVAILABLE", "unavailable"),
        ("UNAUTHENTICATED", "unauthenticated"),
        ("FAILED_PRECONDITION", "invalid_state"),
        ("UNIMPLEMENTED", "method_not_allowed"),
        ("CANCELLED", "internal"),
    ],
)
def test_the_slug_of_a_failure_without_details_follows_from_its_code(
    service: Service, code: str, slug: str
) -> None:
    call = start(service.client.cancel, "ws_1")
    service.take("CancelTask")[1].fail_without_details(
        grpc.StatusCode[code], ("x-request-id", "request_2")
    )
    error = failed(call)
    assert (error.code, error.message, error.request_id, error.details) == (
        slug,
        "it broke",
        "request_2",
        {},
    )
    assert not error.is_from_service


def test_a_slug_that_the_client_does_not_know_is_that_of_its_code(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(BY_CODE, "workspace_busy")
    call = start(service.client.submit_task, "ws_1", "true")
    service.take("SubmitTask")[1].fail(Failure("workspace_busy", "It is busy."))
    error = failed(call)
    assert (error.code, error.message) == ("invalid_state", "It is busy.")
    assert from_stream_error(error_pb2.Error(code=99)).code == "internal"  # type: ignore[arg-type]


def test_only_a_call_that_exceeds_its_limit_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        raise DeadlineExceededError("The timeout has passed.", "request_1", {"a": 1})
    late = TaskNotEndedError("Not yet.", None)
    assert not isinstance(late, OSError)
    for error in (DeadlineExceededError("Late.", "request_1", {"a": 1}), late):
        copy: Any = pickle.loads(pickle.dumps(error))  # noqa: S301 # its own bytes
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
