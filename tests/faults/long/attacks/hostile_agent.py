"""An agent that attackers have taken over: it calls RuntimeService with the token of its pod."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from evershell.agent.v1 import runtime_service_pb2 as messages
from evershell.agent.v1 import runtime_service_pb2_grpc

from evershell.auth.pod_tokens import PodTokens
from tests.support.runtime_tokens import runtime_token
from tests.support.stack import Stack, Workspace
from tests.support.wires import grpc_failure

_CALL_SECONDS = 60.0


class HostileAgent:
    """Calls RuntimeService as the agent of a workspace, while the real agent keeps running."""

    def __init__(self, stack: Stack, workspace: Workspace, channel: grpc.Channel) -> None:
        tokens = PodTokens((stack.state_dir / "control-plane.jwk").read_text())
        token = runtime_token(tokens, workspace.id, int(workspace.get()["epoch"]))
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._stub = runtime_service_pb2_grpc.RuntimeServiceStub(channel)

    def call(self, method: str, request: Any) -> str:
        """Makes a call. Returns the slug of its failure; empty for a success."""
        call: Callable[..., Any] = getattr(self._stub, method)
        try:
            call(request, metadata=self._metadata, timeout=_CALL_SECONDS)
        except grpc.RpcError as error:
            return grpc_failure(error).slug
        return ""

    def commit(self, task_id: str, *events: messages.TaskEvent) -> str:
        """Commits events of a task. Returns the slug of the failure; empty for a success."""
        request = messages.CommitEventsRequest(task_id=task_id, events=events)
        return self.call("CommitEvents", request)

    def report(self, task_id: str, number: int, calls: int = 1, **model_call: Any) -> str:
        """Reports an open iteration. Returns the slug of the failure; empty for a success."""
        called = [messages.StartedCall(name="shell", arguments="x" * 100)] * calls
        opened = messages.OpenIteration(number=number, started_calls=called)
        opened.model_call.SetInParent()
        for name, value in model_call.items():
            setattr(opened.model_call, name, value)
        request = messages.CommitEventsRequest(task_id=task_id, open_iteration=opened)
        return self.call("CommitEvents", request)


@contextmanager
def hostile_agent(stack: Stack, workspace: Workspace) -> Iterator[HostileAgent]:
    """Yields a hostile agent that is connected to the first worker."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(stack.worker_addresses()[0], options=options) as channel:
        yield HostileAgent(stack, workspace, channel)


def iterated(number: int, content: str = "", **model_call: Any) -> messages.TaskEvent:
    """Builds a completed iteration without a tool call."""
    event = messages.TaskEvent()
    event.iteration_completed.number = number
    call = event.iteration_completed.model_call
    call.content = content
    for name, value in model_call.items():
        setattr(call, name, value)
    return event
