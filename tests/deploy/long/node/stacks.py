"""Stacks outside the cluster, with pods on Kubernetes, and their workspaces."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evershell.app.settings import AGENT_PORT_DISTANCE
from tests.deploy.long.node import node
from tests.support.constants import with_constants
from tests.support.ports import free_ports
from tests.support.service import ServiceWorkspace
from tests.support.stack import Stack

# CI machines may be slow.
LIMIT_SECONDS = 120.0
MEMORY_LIMIT = "128Mi"


class NodeWorkspace(ServiceWorkspace):
    """A workspace whose pod runs on a node."""

    limit_seconds = LIMIT_SECONDS


@contextmanager
def running_stack(
    folder: Path, end_seconds: float = 120.0, memory_limit: str = MEMORY_LIMIT, **environment: str
) -> Iterator[Stack]:
    """A stack whose agents run on the node. Its connections to them use TLS, as in the chart.

    `end_seconds` is how long the stack waits for a pod to end. The default suits a slow node.
    """
    node.require()
    host = os.environ.get("NODE_HOST") or _own_address()
    first, _ = free_ports(2, distance=AGENT_PORT_DISTANCE)
    runtime = first + AGENT_PORT_DISTANCE
    template = folder / "agents.yaml"
    resources = {
        "requests": {"cpu": "10m", "memory": "32Mi"},
        "limits": {"cpu": "1", "memory": memory_limit},
    }
    volume = {"resources": {"requests": {"storage": "1Mi"}}}
    template.write_text(json.dumps({"resources": resources, "volume": volume}))
    running = Stack(
        folder / "state",
        POD_IMAGE="evershell:1",
        POD_TEMPLATE_FILE=str(template),
        AGENT_COMMAND="/opt/evershell/bin/python -P -m evershell.agents",
        LISTEN_HOST="0.0.0.0",  # noqa: S104 - pods call the workers
        SERVER_PORT=str(first),
        AGENT_TLS="on",
        RUNTIME_SERVICE=f"{host}:{runtime},{host}:{runtime + 1}",
    )
    constants = {"evershell.app.pod_backends": {"_END_SECONDS": end_seconds}}
    running.set(**environment, **with_constants(folder, constants))
    running.stop_seconds = LIMIT_SECONDS
    with running.started():
        yield running


def _own_address() -> str:
    """The address at which other hosts, such as the nodes that kind starts, reach this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
        # Only chooses a route: nothing is sent. 192.0.2.1 belongs to nobody (RFC 5737).
        unconnected.connect(("192.0.2.1", 1))
        return str(unconnected.getsockname()[0])
