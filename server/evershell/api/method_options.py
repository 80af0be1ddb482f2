"""What the options in the protos say about each method.

The options say whether the method changes something, whether a failed call can be repeated without
another effect, which scopes the method needs, and whether its calls are served first. The client
and the edge read these options too.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from operator import methodcaller

from a2a.types import a2a_pb2
from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1.workspace_service_pb2 import DESCRIPTOR, AccessRule, EdgeRule, edge
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from evershell.api.call import IDEMPOTENCY_HEADER, Call
from evershell.api.status import RULES
from evershell.core.caller import Caller

WORKSPACE_SERVICE = DESCRIPTOR.services_by_name["WorkspaceService"].full_name
# The service of A2A (https://a2a-protocol.org).
A2A_SERVICE = a2a_pb2.DESCRIPTOR.services_by_name["A2AService"].full_name
# SendMessage answers when its task has ended, so it may take as long as a stream.
WAITS = f"/{A2A_SERVICE}/SendMessage"
# The only public method that can be called without a credential. Such a call has the header
# PUBLIC_CARD_HEADER, and asks for the public card.
CARD = f"/{A2A_SERVICE}/GetExtendedAgentCard"
PUBLIC_CARD_HEADER = "x-evershell-public-card"
# The service that agents use.
RUNTIME_SERVICE = runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"].full_name
# The services that callers use.
PUBLIC_SERVICES = (WORKSPACE_SERVICE, A2A_SERVICE)
_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in (
        DESCRIPTOR.services_by_name["WorkspaceService"],
        a2a_pb2.DESCRIPTOR.services_by_name["A2AService"],
    )
    for method in service.methods
}
# Maps methods of A2A to the methods of WorkspaceService that do the same. The options of the latter
# apply to both, except `repeat`.
_SAME = {
    "CancelTask": "CancelTask",
    "GetTask": "GetTask",
    "SendMessage": "SubmitTask",
    "SendStreamingMessage": "SubmitTask",
    "CreateTaskPushNotificationConfig": "CreateWebhook",
    "DeleteTaskPushNotificationConfig": "DeleteWebhook",
}


def _option_sources() -> Iterator[tuple[str, MethodDescriptor]]:
    """Yields the path of each public method with options, and the method that declares them.

    A method of WorkspaceService has its own options. A method of A2A has the options of the method
    to which `_SAME` maps it.
    """
    own = DESCRIPTOR.services_by_name["WorkspaceService"].methods_by_name
    for path, method in _METHODS.items():
        same = own.get(method.name) if path.startswith(f"/{WORKSPACE_SERVICE}/") else None
        same = same or own.get(_SAME.get(method.name, ""))
        if same is not None:
            yield path, same


_OPTION_SOURCES = dict(_option_sources())
_OPTIONS = {path: method.GetOptions().Extensions[edge] for path, method in _OPTION_SOURCES.items()}
# Cancellations of any kind, which have their own rate limit.
CANCELLATIONS = frozenset(
    path for path, options in _OPTIONS.items() if options.urgency == EdgeRule.cancellation
)
# The methods that stop work, or show whether it has stopped. Their calls are served first, and have
# places that other calls cannot use.
FIRST = frozenset(
    {
        *(path for path, options in _OPTIONS.items() if options.urgency),
        f"/{RUNTIME_SERVICE}/CancelChild",
        f"/{RUNTIME_SERVICE}/GetChild",
    }
)
# Every agent calls this method every few seconds.
HEARTBEAT = f"/{RUNTIME_SERVICE}/Heartbeat"
# Load balancers call this method every second.
HEALTH_CHECK = "/grpc.health.v1.Health/Check"


def public_methods(
    *, with_effect: bool, services: Collection[str] = PUBLIC_SERVICES
) -> frozenset[str]:
    """The paths of the public methods that change something.

    If `with_effect` is false, the paths of the public methods that only read. These are the methods
    that REST offers with GET, and the streams that REST does not offer.
    """
    return frozenset(
        path
        for path, method in _METHODS.items()
        if method.containing_service.full_name in services and _has_effect(method) is with_effect
    )


def _has_effect(method: MethodDescriptor) -> bool:
    options = method.GetOptions()
    pattern: str | None = options.Extensions[annotations_pb2.http].WhichOneof("pattern")
    return pattern != "get" and not (pattern is None and method.server_streaming)


# The edge sets this header for a REST call whose path names the task. Without the header, a worker
# would not know this about a call that fails before its request is read.
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
# Calls of A2A can always be repeated: a cancellation names its task, and a message has an id.
_RULES = {
    path: options.repeat
    for path, options in _OPTIONS.items()
    if not path.startswith(f"/{A2A_SERVICE}/")
}


def may_name_task(path: str) -> bool:
    """Whether the method cancels the task that its request names, or else the current task."""
    return _RULES.get(path) == EdgeRule.if_task_is_named


def names_no_task(path: str, call: Call) -> bool:
    """Whether the call is a CancelTask without a task id.

    A CancelTask whose request was not read counts as such a call, unless its path names the task.
    """
    is_named = call.request is not None and bool(call.request.task_id)
    return may_name_task(path) and not (is_named or _TASK_HEADER in call.metadata)


def repeat_advice(path: str, call: Call) -> str:
    """What a caller must do instead of repeating the call; empty if the call can be repeated.

    `path` is the path of the method.
    """
    rule = _RULES.get(path, EdgeRule.always)
    match rule:
        case EdgeRule.always:
            can_repeat = True
        case EdgeRule.if_task_is_named:
            can_repeat = not names_no_task(path, call)
        case EdgeRule.with_idempotency_key:
            can_repeat = IDEMPOTENCY_HEADER in call.metadata
        case _:
            can_repeat = False
    return "" if can_repeat else _ADVICE[rule]


def _scope_check(access: AccessRule) -> Callable[[Caller], object]:
    return methodcaller("require" if access.without_own else "permission", *access.scopes)


# For each method that changes something, by path: a function that checks the scopes before a large
# or slow body is read. Scopes that depend on the request are left to the core, which checks all
# scopes again. CancelTask is not listed, because it must report an invalid request before a missing
# scope.
SCOPE_CHECKS: Mapping[str, Callable[[Caller], object]] = {
    path: _scope_check(_OPTIONS[path].access)
    for path in public_methods(with_effect=True) & _OPTIONS.keys()
    if _OPTIONS[path].repeat != EdgeRule.if_task_is_named
}


def stored_failures(path: str) -> frozenset[str]:
    """The slugs of the failures for which the call itself has already stored its audit entry."""
    # The agent is called only after the change and its audit entry are committed.
    slugs, options = {"agent_unreachable"}, _OPTIONS.get(path)
    if options is not None and options.audits_refusals:
        name = _OPTION_SOURCES[path].name
        slugs |= {slug for slug, rule in RULES.items() if name in rule.rpcs}
        if path.startswith(f"/{A2A_SERVICE}/"):
            slugs.add("task_not_cancelable")
    return frozenset(slugs)


# The methods with which an agent starts and cancels children of its task.
CHILDREN_WITH_EFFECT = frozenset(
    {f"/{RUNTIME_SERVICE}/SubmitChild", f"/{RUNTIME_SERVICE}/CancelChild"}
)
