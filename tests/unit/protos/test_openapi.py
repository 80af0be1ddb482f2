"""The OpenAPI document is valid and complete."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from evershell.workspace.v1 import error_pb2, event_pb2, task_pb2, workspace_service_pb2
from google.api import annotations_pb2
from google.protobuf import json_format
from openapi_spec_validator import OpenAPIV31SpecValidator

from evershell.api.call import IDEMPOTENCY_HEADER
from evershell.core.change import MAX_KEY_CHARACTERS
from tests.support.openapi import (
    Operation,
    document,
    operation,
    operations,
    references,
    resolved,
    validate,
)

SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
CODES = error_pb2.Error.ErrorCode.DESCRIPTOR
RULES = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in CODES.values
    if value.number
}
# The errors of a path or a method that does not exist.
ROUTING_ERRORS = {"not_found", "method_not_allowed"}
# REST offers StreamEvents in its place.
GRPC_ONLY = {"WatchEvents"}
RPCS = [rpc for rpc in SERVICE.methods if rpc.name not in GRPC_ONLY]


def operations_of(rpc: Any) -> list[Operation]:
    """The operations of an RPC: one for each of its bindings."""
    http = rpc.GetOptions().Extensions[annotations_pb2.http]
    found = []
    for rule in (http, *http.additional_bindings):
        verb = rule.WhichOneof("pattern")
        assert verb, f"{rpc.name} has no route"
        described = operation(verb.upper(), getattr(rule, verb))
        assert described is not None, f"{rpc.name} is not in the document"
        found.append(described)
    return found


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(document()).validate()


def test_every_operation_belongs_to_an_rpc() -> None:
    assert {each.path for rpc in RPCS for each in operations_of(rpc)} == set(document()["paths"])
    assert sum(len(operations_of(rpc)) for rpc in RPCS) == len(operations())
    names = [each.described["operationId"] for each in operations()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_every_rpc_has_its_statuses_and_its_errors(rpc: Any) -> None:
    edge = rpc.GetOptions().Extensions[workspace_service_pb2.edge]
    every = SERVICE.GetOptions().Extensions[workspace_service_pb2.every_call].errors
    slugs = {CODES.values_by_number[number].name: 0 for number in (*every, *edge.errors)}
    for each in operations_of(rpc):
        assert each.slugs() == {slug: RULES[slug].http for slug in slugs}
        successes = {int(status) for status in each.described["responses"] if status < "400"}
        assert successes == {edge.success_status, edge.success_status_after_wait} - {0}
        assert each.described["summary"] and each.described["description"]
    # An RPC that takes an id can receive an unknown one.
    names = set(rpc.input_type.fields_by_name)
    assert ("workspace_not_found" in slugs) == ("workspace_id" in names)
    # A list that is filtered by a task that does not exist is empty.
    takes_task = "task_id" in names and rpc.name != "ListAuditEntries"
    assert ("task_not_found" in slugs) == takes_task
    if rpc.server_streaming:
        assert "text/event-stream" in operations_of(rpc)[0].described["responses"]["200"]["content"]


def test_every_slug_has_an_example_and_an_operation() -> None:
    examples = document()["components"]["examples"]
    assert examples.keys() == RULES.keys() - ROUTING_ERRORS
    envelope = {"$ref": "#/components/schemas/ErrorEnvelope"}
    for slug, example in examples.items():
        validate(example["value"], envelope)
        assert example["value"]["error"]["code"] == slug
        assert example["description"]
    assert {slug for each in operations() for slug in each.slugs()} == RULES.keys() - ROUTING_ERRORS
    assert all(f"`{slug}`" in document()["info"]["description"] for slug in ROUTING_ERRORS)
    assert resolved(envelope)["properties"]["error"]["$ref"] == "#/components/schemas/Error"
    assert document()["components"]["schemas"]["ErrorCode"]["enum"] == list(RULES)


def test_every_error_is_a_plain_reference_to_the_envelope_with_its_codes_beside_it() -> None:
    """Generators make one class of a plain reference, and a class without fields of an `allOf`."""
    for response in document()["components"]["responses"].values():
        content = response["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/ErrorEnvelope"}
        assert list(content["examples"]) == response["x-error-codes"]
    error = document()["components"]["schemas"]["Error"]
    assert error["properties"]["details"]["$ref"] == "#/components/schemas/ErrorDetails"


def test_every_success_has_an_example_that_is_valid() -> None:
    for each in operations():
        for status, response in each.described["responses"].items():
            if status < "400":
                (content,) = response["content"].values()
                validate(content["example"], content["schema"])


def test_an_idempotency_key_has_the_length_that_the_service_takes() -> None:
    taken = {
        each.described["operationId"]: parameter["schema"]["maxLength"]
        for each in operations()
        for parameter in each.described["parameters"]
        if parameter["name"] == IDEMPOTENCY_HEADER
    }
    assert taken == dict.fromkeys(("CreateWorkspace", "SubmitTask"), MAX_KEY_CHARACTERS)


def test_no_name_has_a_dot() -> None:
    for components in document()["components"].values():
        assert not [name for name in components if "." in name]


def test_every_field_and_every_value_is_described_as_in_the_protos() -> None:
    for path in (each.described for each in operations()):
        for reference in references(path):
            assert resolved({"$ref": reference})
    for message in (task_pb2.Task, event_pb2.Event, error_pb2.Error):
        schema = document()["components"]["schemas"][message.DESCRIPTOR.name]
        assert list(schema["properties"]) == [field.name for field in message.DESCRIPTOR.fields]
    status = document()["components"]["schemas"]["TaskStatus"]
    assert status["enum"] == task_pb2.Task.Status.keys()[1:]
    assert (
        "`cancelled`: Ended: a cancellation was recorded before its end." in status["description"]
    )
    # A zero value with a meaning is one of the enum's values.
    assert "phase_unspecified" in document()["components"]["schemas"]["TaskPhase"]["enum"]


def test_a_body_is_a_component_without_the_fields_of_the_path() -> None:
    for each in operations():
        in_path = set(re.findall(r"\{(\w+)\}", each.path))
        parameters = each.described["parameters"]
        assert in_path == {each["name"] for each in parameters if each["in"] == "path"}
        assert all(parameter["description"] for parameter in parameters)
        if body := each.body():
            content = each.described["requestBody"]["content"]["application/json"]
            name = f"{each.described['operationId']}Request"
            assert content["schema"] == {"$ref": f"#/components/schemas/{name}"}
            validate(content["example"], content["schema"])
            assert not in_path & set(body["properties"])


def test_the_json_of_a_message_matches_its_schema() -> None:
    task = task_pb2.Task(
        id="task_1",
        status=task_pb2.Task.running,
        metadata={"a": "b"},
        usage=task_pb2.Usage(input_tokens=2**53 + 1),
    )
    task.created_at.FromDatetime(datetime.now(UTC))
    text = json_format.MessageToJson(
        task, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    validate(json.loads(text), {"$ref": "#/components/schemas/Task"})
    decoded = json.loads(text)
    assert isinstance(decoded["usage"]["input_tokens"], str)
