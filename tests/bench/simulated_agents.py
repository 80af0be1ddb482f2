"""Idle agents for the bench: they send heartbeats at the rate of real agents."""

import heapq
import random
import selectors
import time
from collections import Counter
from dataclasses import dataclass, field

from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest, HeartbeatResponse

from evershell.server.agent.heartbeat import JITTER
from evershell.server.agent.lease import HEARTBEATS_A_LEASE
from evershell.server.auth.pod_tokens import PodTokens
from evershell.server.core.runtime import AgentIdentity
from tests.bench.http2 import Connection, message
from tests.bench.load import collecting_no_garbage

LEASE_SECONDS = 30
INTERVAL_SECONDS = LEASE_SECONDS / HEARTBEATS_A_LEASE
_METHOD = "/evershell.agent.v1.RuntimeService/Heartbeat"


@dataclass
class Agents:
    """Simulated agents that send heartbeats."""

    connections: list[Connection]
    statuses: Counter[int] = field(default_factory=Counter)
    fenced: int = 0

    @classmethod
    def connect(cls, address: str, tokens: PodTokens, count: int) -> "Agents":
        """The agents of the first `count` workspaces of the bench."""

        def connection(number: int) -> Connection:
            token = tokens.runtime_token(AgentIdentity(f"ws_{number:026}", 1))
            return Connection(address, _METHOD, [("authorization", f"Bearer {token}")])

        return cls([connection(number) for number in range(1, count + 1)])

    def beat(self, seconds: float) -> int:
        """Sends heartbeats for this time, at the rate of real agents. Returns their number."""
        body = message(HeartbeatRequest().SerializeToString())
        now = time.monotonic()
        due = [
            (now + random.uniform(0, INTERVAL_SECONDS), number)
            for number in range(len(self.connections))
        ]
        heapq.heapify(due)
        until, sent, open_calls = now + seconds, 0, 0
        with collecting_no_garbage(), selectors.DefaultSelector() as selector:
            for connection in self.connections:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            while (now := time.monotonic()) < until or open_calls:
                while due[0][0] <= now < until:
                    at, number = due[0]
                    connection = self.connections[number]
                    connection.collect(connection.call(body))
                    connection.flush()
                    sent, open_calls = sent + 1, open_calls + 1
                    heapq.heapreplace(due, (at + _interval(), number))
                wait_seconds = max(0.0, min(due[0][0], until) - now) if now < until else 1.0
                for key, _ in selector.select(wait_seconds):
                    open_calls -= self._receive(key.data)
        return sent

    def _receive(self, connection: Connection) -> int:
        ended = connection.receive()
        for stream, status in ended:
            self.statuses[status] += 1
            reply = HeartbeatResponse.FromString(bytes(connection.collected.pop(stream, b"")[5:]))
            self.fenced += reply.directive.fenced or not reply.directive.lease_ms
        return len(ended)

    def close(self) -> None:
        """Closes all connections."""
        for connection in self.connections:
            connection.close()


def _interval() -> float:
    return INTERVAL_SECONDS * random.uniform(*JITTER)
