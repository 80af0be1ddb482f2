"""Writes the tables of all methods and of the filters of lists in docs/calls.md."""

import textwrap
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from source import PACKAGE, Protos

_HEAD = "| RPC | REST | success | scope | its errors |\n|---|---|---|---|---|\n"


def call_table(protos: Protos) -> str:
    """The table of all methods, and a sentence about the errors that every call can return."""
    table = _HEAD + "".join(_row(protos, method) for method in protos.service.methods)
    common = [rule.slug for rule in protos.rules() if rule.every_call and not rule.edge_only]
    slugs = ", ".join(f"`{slug}`" for slug in common)
    sentence = f"Every call may also answer {slugs}, or an error of the edge itself."
    return f"{table}\n{textwrap.fill(sentence, 100)}\n"


_FILTERS = "| list | field | items |\n|---|---|---|\n"
_PAGES = ("page_size", "page_token")


def filter_table(protos: Protos) -> str:
    """The table of the filters of each list that has pages."""
    return _FILTERS + "".join(
        f"| {method.name} | `{field.name}` | {_text(protos, field.full_name)} |\n"
        for method in protos.service.methods
        if "page_token" in method.input_type.fields_by_name
        for field in method.input_type.fields
        if field.name not in _PAGES
    )


def _text(protos: Protos, full_name: str) -> str:
    return " ".join(protos.comment(full_name).split())


def _row(protos: Protos, method: MethodDescriptor) -> str:
    options = method.GetOptions()
    edge = protos.option(options, f"{PACKAGE}.edge")
    http = protos.option(options, "google.api.http")
    errors = ", ".join(f"`{slug}`" for slug in protos.own_errors(method))
    cells = (
        method.name,
        _paths(http),
        _success(method, edge),
        _scope(protos.access(method)),
        errors,
    )
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|\n"


def _paths(http: Any) -> str:
    rules = [rule for rule in (http, *http.additional_bindings) if rule.WhichOneof("pattern")]
    verbs = [(rule.WhichOneof("pattern"), rule) for rule in rules]
    return ", ".join(f"{verb.upper()} `{getattr(rule, verb)}`" for verb, rule in verbs) or (
        "gRPC only"
    )


def _success(method: MethodDescriptor, edge: Any) -> str:
    if not edge.success_status:
        return "a stream of messages"
    remarks = ""
    if method.server_streaming:
        remarks = ", Server-Sent Events"
    elif "page_token" in method.input_type.fields_by_name:
        remarks = ", paged"
    if edge.success_status_after_wait:
        remarks += (
            f"; {edge.success_status_after_wait} if the call has a `wait` and the task has ended"
        )
    return f"{edge.success_status}{remarks}"


def _scope(access: Any) -> str:
    enough = " or ".join(f"`{scope}`" for scope in access.scopes)
    return f"{enough} and `{access.also}`" if access.also else enough or "none"
