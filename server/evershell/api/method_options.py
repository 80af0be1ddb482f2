"""What the options in the protos say of each method: whether it changes something, and whether a
failed call can be repeated without another effect. The client and the edge read them too.
"""

from evershell.workspace.v1 import workspace_service_pb2
from evershell.workspace.v1.workspace_service_pb2 import DESCRIPTOR, EdgeRule, edge
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import MethodOptions

from evershell.api.call import IDEMPOTENCY_HEADER, Call


def public_methods(*, with_effect: bool) -> frozenset[str]:
    """The paths of the public methods that change something, or of those that change nothing.

    REST offers the latter, and only these, with GET. Every stream is a read, even if REST does not
    offer it.
    """
    service = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
    return frozenset(
        f"/{service.full_name}/{method.name}"
        for method in service.methods
        if (method.server_streaming or _is_get(method.GetOptions())) is not with_effect
    )


def _is_get(options: MethodOptions) -> bool:
    pattern: str | None = options.Extensions[annotations_pb2.http].WhichOneof("pattern")
    return pattern == "get"


# The edge sets it for a REST call whose path names the task. The request is read late, and a call
# can fail before.
_TASK_HEADER = "x-evershell-task"
_ADVICE = {
    EdgeRule.repeat_unspecified: "The call may have had its effect: look before you repeat it.",
    EdgeRule.if_task_is_named: (
        "A cancellation may be recorded. Do not repeat the call without a task id: it could cancel "
        "the next task. With the id of the task, it can be repeated."
    ),
    EdgeRule.with_idempotency_key: (
        "The call may have had its effect: look before you repeat it. With an idempotency key, "
        "it could be repeated."
    ),
}
_SERVICE = DESCRIPTOR.services_by_name["WorkspaceService"]
_RULES = {
    f"/{_SERVICE.full_name}/{method.name}": method.GetOptions().Extensions[edge].repeat
    for method in _SERVICE.methods
}


def repeat_advice(path: str, call: Call) -> str:
    """What a caller has to do instead of a repeat; empty if the call can be repeated.

    `path` is that of the method. A call whose request has not been read may name no task.
    """
    rule = _RULES.get(path, EdgeRule.always)
    match rule:
        case EdgeRule.always:
            can_repeat = True
        case EdgeRule.if_task_is_named:
            is_named = call.request is not None and bool(call.request.task_id)
            can_repeat = is_named or _TASK_HEADER in call.metadata
        case EdgeRule.with_idempotency_key:
            can_repeat = IDEMPOTENCY_HEADER in call.metadata
        case _:
            can_repeat = False
    return "" if can_repeat else _ADVICE[rule]
