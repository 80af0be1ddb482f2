"""Reads from the status of a pod whether its agent runs and, if not, why."""

import signal
from collections.abc import Iterator

from evershell.fleet.kubernetes.objects import Object

_ENDED_PHASES = frozenset({"Succeeded", "Failed"})
# Reasons that a waiting container reports if it will never start. Only a new pod can help.
_NEVER_STARTS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
# The reasons that a container reports while it waits for a normal start.
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
_IMAGE_PROBLEMS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}
)
_MAX_MESSAGE = 300
# If a signal ends a process, the exit code is this number plus the number of the signal.
_SIGNALLED = 128
_KILLED = _SIGNALLED + signal.SIGKILL


def is_alive(pod: Object) -> bool:
    """Whether the agent of the pod runs or is about to run."""
    status = pod.get("status", {})
    return not (
        status.get("phase") in _ENDED_PHASES
        or "deletionTimestamp" in pod["metadata"]
        or any("terminated" in state for state in _states(pod))
        or any(waiting.get("reason") in _NEVER_STARTS for waiting in _waiting(pod))
    )


def has_ended(last: Object) -> bool:
    """Whether all containers of a deleted pod have ended. `last` is its last known state.

    The kubelet reports the end of all containers before it confirms a deletion. A pod that
    disappears without this report was deleted by force or together with its node, and its
    containers may still run.
    """
    status = last.get("status", {})
    if not last["spec"].get("nodeName"):
        return True
    states = list(_states(last))
    if not states:
        # An evicted pod becomes `Failed` before its containers have ended, and then has no
        # container statuses.
        return status.get("phase") not in _ENDED_PHASES
    return not any("running" in state for state in states)


def end_is_reported(pod: Object) -> bool:
    """Whether the kubelet has reported the end of all containers of a pod that still exists.

    The pod object remains until the kubelet has also released the volumes, which can take long.
    """
    states = list(_states(pod))
    return bool(states) and all("terminated" in state for state in states)


def last_line(pod: Object) -> str:
    """The last line of the agent's log; empty if it is not known."""
    messages = [ended.get("message") or "" for ended in _terminated(pod)]
    lines = "\n".join(messages).strip().splitlines()
    return lines[-1] if lines else ""


def explain(pod: Object) -> str:
    """Why the agent of the pod has ended or does not start, as a clause; empty if unknown."""
    return (
        _explain_disruption(pod)
        or _explain_end(pod)
        or _explain_wait(pod)
        or _explain_placement(pod)
        or _explain_deletion(pod)
        or _explain_signal(pod)
    )


def _explain_disruption(pod: Object) -> str:
    status = pod.get("status", {})
    match status.get("reason"):
        case "Evicted":
            return f"its pod was evicted: {_message(status)}"
        case "NodeLost":
            return "the node of its pod does not answer"
        case "Preempting" | "Preempted":
            return "its pod had to make room for another one"
        case "Shutdown" | "NodeShutdown" | "Terminated":
            return "the node of its pod was shut down"
        case "DeadlineExceeded":
            return "its pod exceeded its deadline"
    target = _condition(pod, "DisruptionTarget")
    if target is None or target.get("status") != "True":
        return ""
    match target.get("reason"):
        case "PreemptionByScheduler":
            return "its pod had to make room for another one"
        case "DeletionByTaintManager":
            return "the node of its pod does not answer, or takes no more pods"
        case "EvictionByEvictionAPI":
            return "its pod was evicted, as in the drain of a node"
        case "DeletionByPodGC":
            return "the node of its pod is gone"
    return f"its pod was disrupted: {_message(target)}"


def _explain_end(pod: Object) -> str:
    for ended in _terminated(pod):
        # Once a tool has run out of memory, containerd reports OOMKilled for any later end of the
        # agent. So the exit code must also say that SIGKILL ended the agent.
        if ended.get("reason") == "OOMKilled" and ended.get("exitCode", _KILLED) == _KILLED:
            return f"its agent ran out of memory{_memory_limit(pod)}"
        if ended.get("reason") in ("ContainerCannotRun", "StartError"):
            return f"its container could not be started: {_message(ended)}"
    status = pod.get("status", {})
    if status.get("phase") == "Failed" and status.get("reason"):
        # The kubelet has refused the pod, for example OutOfcpu.
        return f"its node refused the pod: {_message(status)}"
    return ""


def _explain_wait(pod: Object) -> str:
    for waiting in _waiting(pod):
        reason = waiting.get("reason", "")
        if reason in _IMAGE_PROBLEMS:
            return f"its image cannot be pulled: {_message(waiting)}"
        if reason and reason not in _STARTING:
            return f"its container does not start: {_message(waiting)}"
    return ""


def _explain_placement(pod: Object) -> str:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        return f"no node takes its pod: {_message(scheduled)}"
    ready = _condition(pod, "Ready")
    if (
        ready is not None
        and ready.get("status") == "False"
        and any("running" in state for state in _states(pod))
    ):
        # The pod has no readiness probe, so only the node controller sets this status.
        return "the node of its pod does not answer"
    return ""


def _explain_deletion(pod: Object) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "its pod was deleted from outside, as in the drain of a node"
    return ""


def _explain_signal(pod: Object) -> str:
    for ended in _terminated(pod):
        number = ended.get("exitCode", 0) - _SIGNALLED
        if number in set(signal.Signals):
            return f"its agent was killed by {signal.Signals(number).name}"
    return ""


def _memory_limit(pod: Object) -> str:
    for container in pod["spec"]["containers"]:
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        if limit:
            return f" (its limit is {limit})"
    return ""


def _message(state: Object) -> str:
    text = state.get("message") or state.get("reason") or "no reason is known"
    return " ".join(str(text).split())[:_MAX_MESSAGE]


def _condition(pod: Object, type_: str) -> Object | None:
    conditions = pod.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == type_), None)


def _states(pod: Object) -> Iterator[Object]:
    for status in pod.get("status", {}).get("containerStatuses") or ():
        yield status.get("state") or {}


def _terminated(pod: Object) -> Iterator[Object]:
    return (state["terminated"] for state in _states(pod) if "terminated" in state)


def _waiting(pod: Object) -> Iterator[Object]:
    return (state["waiting"] for state in _states(pod) if "waiting" in state)
