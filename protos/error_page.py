"""Writes the page of the error codes, docs/errors.md."""

import json
from collections.abc import Iterator

from google.rpc import code_pb2
from source import Protos, Rule

_INTRODUCTION = """\
# Errors

<!-- Written by `make gen` from protos/evershell/workspace/v1/error.proto. Do not edit. -->

A call that fails answers with one error. Its code is a member of a closed set, the same
over gRPC and REST. A code is never removed, and its statuses never change.

Over REST, the body is always this envelope. `details` is absent if an error has none:

```json
{
  "error": {
    "code": "task_not_found",
    "message": "Workspace ws_1 has no task task_1. Check the ids of both.",
    "request_id": "a77eaf0b-9563-418e-9a64-a4b2e8ba042a",
    "details": {
      "resource_type": "task",
      "resource_name": "task_1",
      "workspace_id": "ws_1"
    }
  }
}
```

- `code` is for programs. Decide by it, and not by the HTTP status: several codes share one.
- `message` is human-readable. It names the resource, its state and what to do next. Its wording may
  change.
- `request_id` identifies the call in the logs and in the [audit log](audit.md). It is also in the
  header `x-request-id`.
- `details` has the facts for programs. The sections below show which.

Over gRPC, a failed call has a `google.rpc.Status` in `grpc-status-details-bin`: an ErrorInfo whose
`reason` is the code in upper case and whose `domain` is `evershell.ai`, a RequestInfo, and the
standard message for the facts (BadRequest, ResourceInfo, PreconditionFailure or RetryInfo).
[grpcurl prints them](grpc.md#grpcurl).

The [Python client](python-client.md) raises one exception class for each code, and the
[TypeScript client](typescript-client.md) has the codes as a type. The [glossary](glossary.md)
compares the names of REST, gRPC, the clients and the audit log.

## Repeat a call

These calls can be repeated without another effect: reads, a cancellation that names its task,
SubmitTask, CreateWorkspace and ResumeWorkspaces with an [idempotency
key](calls.md#idempotency-keys), CancelTasks and HoldOrg. Their `unavailable` has `retry-after`
(gRPC: RetryInfo).

All other calls must not be repeated blindly: a cancellation without a task id could cancel the next
task. Over REST, each of their errors has `x-should-retry: false`, since SDKs of common generators
repeat every 409 and 5xx unless an answer has this header; `unavailable` has no `retry-after` and,
over gRPC, no RetryInfo. A cancellation that fails before its body is read is answered as one
without a task id, unless its path names the task. `rate_limited` has `retry-after`, since the call
had no effect, and so does `unavailable` of a call that was [refused](calls.md#overload). Neither
has it if the call is a cancellation without a task id.

Errors that would occur again at once have `x-should-retry: false` for every call. The sections
below say which.

"""
_TABLE = "| code | HTTP | gRPC | meaning |\n|---|---|---|---|\n"
_SERVICE = "## All codes\n\n"
_A2A = """
Only the methods of [A2A](a2a.md#errors) return these codes:

"""
_EDGE = """
Only Envoy returns these codes, before a call reaches the service:

"""


def error_page(protos: Protos) -> str:
    """The page: a table of all codes, and a section for each."""
    rules = protos.rules()
    a2a = [rule for rule in rules if rule.a2a_only]
    edge = [rule for rule in rules if rule.edge_only]
    service = [rule for rule in rules if rule not in (*a2a, *edge)]
    tables = _SERVICE + _table(service) + _A2A + _table(a2a) + _EDGE + _table(edge)
    sections = "".join(_section(rule) for rule in (*service, *a2a, *edge))
    return f"{_INTRODUCTION}{tables}{sections}"


def _table(rules: list[Rule]) -> str:
    return _TABLE + "".join(
        f"| [`{rule.slug}`](#{rule.slug}) | {rule.http} | {_grpc(rule)} | {rule.message} |\n"
        for rule in rules
    )


def _section(rule: Rule) -> str:
    return f"\n## {rule.slug}\n\n" + "\n\n".join(_paragraphs(rule)) + "\n"


def _paragraphs(rule: Rule) -> Iterator[str]:
    retry = ", `x-should-retry: false`" if rule.no_retry else ""
    yield f"HTTP {rule.http}, gRPC {_grpc(rule)}{retry}."
    yield f"{rule.message} Example: {rule.example}"
    yield f"**What to do.** {rule.action}"
    if rule.details:
        details = json.dumps(json.loads(rule.details))
        yield f"`details` of an example:\n\n```json\n{details}\n```"
    yield f"Answered by: {_answered_by(rule)}."


def _answered_by(rule: Rule) -> str:
    if rule.edge_only:
        return "Envoy"
    if rule.a2a_only:
        return "[A2A](a2a.md#errors)"
    return "every call" if rule.every_call else ", ".join(rule.rpcs)


def _grpc(rule: Rule) -> str:
    return f"`{code_pb2.Code.Name(rule.grpc)}`"
