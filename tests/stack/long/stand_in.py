"""Replaces an agent at its address.

The replacement is an AgentService of the test, a socket that never responds, or a closed port.
"""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from evershell.agent.v1 import agent_service_pb2 as messages
from evershell.agent.v1 import agent_service_pb2_grpc

from tests.support.ports import free_ports
from tests.support.stack import Workspace

# Takes the number of the attempt, starting at 1, and a function that forwards the call to the
# agent. Returns the response.
Behaviour = Callable[[int, Callable[[], messages.CancelTaskResponse]], messages.CancelTaskResponse]


@contextmanager
def address_of_agent(workspace: Workspace, address: str) -> Iterator[str]:
    """Records `address` as the address of the workspace's agent and yields the real address."""
    agent = str(workspace.agent_address)
    with workspace.stack.database() as connection:
        update = "UPDATE workspaces SET agent_address = %s WHERE id = %s AND agent_address = %s"
        connection.execute(update, (address, workspace.id, agent))
        try:
            yield agent
        finally:
            connection.execute(update, (agent, workspace.id, address))


@contextmanager
def nobody(workspace: Workspace) -> Iterator[None]:
    """Makes connections to the agent fail."""
    (port,) = free_ports(1)
    with address_of_agent(workspace, f"127.0.0.1:{port}"):
        yield


@contextmanager
def silence(workspace: Workspace) -> Iterator[None]:
    """Accepts connections to the agent and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as accepting:
        accepted: list[socket.socket] = []

        def accept() -> None:
            # Shutting down the listener ends a blocked `accept`. Closing it does not.
            with suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        accepting.submit(accept)
        try:
            with address_of_agent(workspace, f"127.0.0.1:{listener.getsockname()[1]}"):
                yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in accepted:
                connection.close()


class StandIn(agent_service_pb2_grpc.AgentServiceServicer):
    """Responds to CancelTask with the behaviour that the test sets."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.agent_address = ""
        self.attempts: list[messages.CancelTaskRequest] = []

    def CancelTask(
        self, request: messages.CancelTaskRequest, context: Any
    ) -> messages.CancelTaskResponse:
        self.attempts.append(request)
        metadata = tuple(
            (key, value) for key, value in context.invocation_metadata() if key == "authorization"
        )

        def pass_on() -> messages.CancelTaskResponse:
            with grpc.insecure_channel(self.agent_address) as channel:
                stub = agent_service_pb2_grpc.AgentServiceStub(channel)
                return stub.CancelTask(request, metadata=metadata, timeout=5)

        return self._behaviour(len(self.attempts), pass_on)

    def StartTask(
        self, request: messages.StartTaskRequest, context: Any
    ) -> messages.StartTaskResponse:
        raise AssertionError("no test has a task handed to a stand-in")

    def GetSession(
        self, request: messages.GetSessionRequest, context: Any
    ) -> messages.GetSessionResponse:
        raise AssertionError("nothing asks a stand-in for its session")


@contextmanager
def standing_in(workspace: Workspace, behaviour: Behaviour) -> Iterator[StandIn]:
    """Runs a stand-in that receives the signals of the control plane instead of the agent."""
    stand_in = StandIn(behaviour)
    server = grpc.server(ThreadPoolExecutor(4))
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(stand_in, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with address_of_agent(workspace, f"127.0.0.1:{port}") as stand_in.agent_address:
            yield stand_in
    finally:
        server.stop(None).wait()
