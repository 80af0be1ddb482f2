"""Whether a failed call can be repeated without another effect.

The option `repeat` of each method in the protos has the rule. The client and the edge read it too.
"""

from evershell.workspace.v1.workspace_service_pb2 import DESCRIPTOR, EdgeRule, edge

from evershell.api.call import Call
from evershell.api.idempotency import HEADER

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
            can_repeat = HEADER in call.metadata
        case _:
            can_repeat = False
    return "" if can_repeat else _ADVICE[rule]
