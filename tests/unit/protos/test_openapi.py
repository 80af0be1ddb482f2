"""The OpenAPI document is valid and complete."""

import re
from typing import Any

import pytest
from evershell.workspace.v1 import error_pb2, workspace_service_pb2
from google.api import annotations_pb2
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support.openapi import (
    Operation,
    document,
    operation,
    operations,
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
# The errors for a path or a method that does not exist.
ROUTING_ERRORS = {"not_found", "method_not_allowed"}
# REST has StreamEvents and StreamOrganization instead.
GRPC_ONLY = {"WatchEvents", "WatchOrganization"}
# If these calls filter by a task that does not exist, they find nothing, which is not an error.
LISTS = {"ListAuditEntries", "ListTasks", "ReplayWebhook"}
RPCS = [rpc for rpc in SERVICE.methods if rpc.name not in GRPC_ONLY]


def operations_of(rpc: Any) -> list[Operation]:
    """Returns the operations of an RPC, one for each of its bindings."""
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
    slugs = {slug for slug, rule in RULES.items() if rule.every_call or rpc.name in rule.rpcs}
    for each in operations_of(rpc):
        assert each.slugs() == {slug: RULES[slug].http for slug in slugs}
        successes = {int(status) for status in each.described["responses"] if status < "400"}
        assert successes == {edge.success_status, edge.success_status_after_wait} - {0}
        assert each.described["summary"] and each.described["description"]
    # An RPC that takes an id may get an unknown id.
    names = set(rpc.input_type.fields_by_name)
    # If CreateWorkspace is repeated late, its workspace may have been deleted.
    takes_workspace = "workspace_id" in names or rpc.name == "CreateWorkspace"
    assert ("workspace_not_found" in slugs) == takes_workspace
    assert ("webhook_not_found" in slugs) == ("webhook_id" in names)
    takes_task = names & {"task_id", "parent_task_id"} and rpc.name not in LISTS
    assert ("task_not_found" in slugs) == bool(takes_task)
    if rpc.server_streaming:
        assert "text/event-stream" in operations_of(rpc)[0].described["responses"]["200"]["content"]


def test_every_slug_has_an_example_and_an_operation() -> None:
    examples = document()["components"]["examples"]
    slugs = {slug for slug, rule in RULES.items() if not rule.a2a_only} - ROUTING_ERRORS
    assert examples.keys() == slugs
    envelope = {"$ref": "#/components/schemas/ErrorEnvelope"}
    for slug, example in examples.items():
        validate(example["value"], envelope)
        assert example["value"]["error"]["code"] == slug
        assert example["description"]
    assert {slug for each in operations() for slug in each.slugs()} == slugs
    assert all(f"`{slug}`" in document()["info"]["description"] for slug in ROUTING_ERRORS)
    assert resolved(envelope)["properties"]["error"]["$ref"] == "#/components/schemas/Error"
    assert document()["components"]["schemas"]["ErrorCode"]["enum"] == list(RULES)


def test_every_success_has_an_example_that_is_valid() -> None:
    for each in operations():
        for status, response in each.described["responses"].items():
            if status < "400":
                (content,) = response["content"].values()
                validate(content["example"], content["schema"])


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
