"""Idle agents for the bench: they send heartbeats at the rate of real agents."""

import heapq
import random
import selectors
import time
from collections import Counter
from dataclasses import dataclass, field

from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest, HeartbeatResponse

from bench.http2 import Connection, message
from bench.load import collecting_no_garbage
from evershell.agents.lease import HEARTBEATS_A_LEASE, JITTER
from evershell.auth.pod_tokens import PodTokens
from evershell.pod.tokens import minute_of
from tests.support.runtime_tokens import runtime_token

LEASE_SECONDS = 30
INTERVAL_SECONDS = LEASE_SECONDS / HEARTBEATS_A_LEASE
_METHOD = "/evershell.agent.v1.RuntimeService/Heartbeat"


@dataclass
class Agents:
    """Simulated agents that send heartbeats."""

    connections: list[Connection]
    tokens: PodTokens
    # For each connection, the minute in which its current token was made.
    minutes: list[int]
    statuses: Counter[int] = field(default_factory=Counter)
    fenced: int = 0

    @classmethod
    def connect(cls, address: str, tokens: PodTokens, count: int) -> "Agents":
        """Connects the agents of the first `count` workspaces."""

        connections = [Connection(address, _METHOD) for _ in range(count)]
        return cls(connections, tokens, [0] * count)

    def beat(self, seconds: float) -> int:
        """Sends heartbeats at the rate of real agents for `seconds`. Returns how many it sent."""
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
                    self._renew_token(number)
                    connection.collect(connection.call(body))
                    connection.flush()
                    sent, open_calls = sent + 1, open_calls + 1
                    heapq.heapreplace(due, (at + _interval(), number))
                wait_seconds = max(0.0, min(due[0][0], until) - now) if now < until else 1.0
                for key, _ in selector.select(wait_seconds):
                    open_calls -= self._receive(key.data)
        return sent

    def _renew_token(self, number: int) -> None:
        minute = minute_of(time.time())
        if self.minutes[number] != minute:
            token = runtime_token(self.tokens, f"ws_{number + 1:026}", 1)
            self.connections[number].set_metadata([("authorization", f"Bearer {token}")])
            self.minutes[number] = minute

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
