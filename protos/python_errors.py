"""Writes the classes of errors of the Python client: one for each slug that gRPC answers with."""

import re

from google.rpc import code_pb2
from python_text import camel_case, docstring, prose
from source import Protos, Rule

# Standard exceptions that some error classes have as a second base class.
_STANDARD = {"deadline_exceeded": "TimeoutError"}
# Docstrings for slugs that the client itself also raises, or that it derives from the gRPC code of
# an answer without a slug. All other docstrings come from error.proto.
_TEXTS = {
    "validation_error": (
        "A field of the request is not valid; `fields` names it.\n\n"
        "The client itself raises it, without a call, if a task id is empty or a request cannot "
        "hold a value."
    ),
    "unavailable": (
        "The service cannot be reached, or cannot answer now.\n\n"
        "Without `retry_after`, a repeat could have a second effect: first check whether the call "
        "had its effect."
    ),
    "not_found": "The address is not the address of an evershell service.",
    "method_not_allowed": (
        "The service does not have this method. It may be older than the client."
    ),
}
# The facts of an error that its class offers as properties.
_PROPERTIES = "fields|required|task_id|workspace_id|intent_recorded"


def error_classes(protos: Protos) -> str:
    """The classes, for client/evershell/client/errors.py."""
    rpcs = [method.name for method in protos.service.methods]
    return "".join(_class(rule, rpcs) for rule in protos.rules() if is_of_client(rule))


def is_of_client(rule: Rule) -> bool:
    """Whether a caller of gRPC can get the slug.

    Some slugs that only the edge answers with are included: the client derives them from the gRPC
    code of an answer without a slug.
    """
    stands_for_code = rule.fallback or rule.slug == code_pb2.Code.Name(rule.grpc).lower()
    return not rule.a2a_only and (stands_for_code or not rule.edge_only)


def error_class(slug: str) -> str:
    """The name of the class of a slug."""
    return f"{camel_case(slug.removesuffix('_error'))}Error"


def _class(rule: Rule, rpcs: list[str]) -> str:
    bases = ", ".join(filter(None, ["CallError", _STANDARD.get(rule.slug)]))
    text = docstring(_TEXTS.get(rule.slug) or _text(rule, rpcs), 4)
    return f'\n\nclass {error_class(rule.slug)}({bases}):\n{text}\n\n    code = "{rule.slug}"\n'


def _text(rule: Rule, rpcs: list[str]) -> str:
    # A message that is too long for the summary is split at its semicolons. Its first part is then
    # the summary.
    parts = rule.message.split("; ") if len(rule.message) > 90 else [rule.message]
    more = " ".join([*(f"{each[:1].upper()}{each[1:]}" for each in parts[1:]), rule.action])
    more = re.sub(rf"`details\.({_PROPERTIES})`", r"`\1`", more).replace(
        "retry-after", "retry_after"
    )
    return prose(f"{parts[0].rstrip('.')}.\n\n{more}", rpcs)
