"""Removes the sandboxes of pods that have ended, as the kubelet of Kubernetes 1.21 and later does.

    pod_sandboxes.py SOCKET

An older kubelet removes them only once a minute, and a deleted pod exists until then. This
program removes an ended sandbox once the kubelet has removed its containers. By then, the kubelet
knows how they ended. SOCKET is the socket of containerd. The program ends when its parent ends.
"""

import os
import sys
import time
from contextlib import suppress
from typing import Any

import grpc

_POLL_SECONDS = 0.5
# The time limit of a call.
_CALL_SECONDS = 10.0

messages, services = grpc.protos_and_services("pod_sandboxes.proto")


def main(socket: str) -> None:
    """Runs until the parent of this process has ended."""
    parent = os.getppid()
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        runtime = services.RuntimeServiceStub(channel)
        while os.getppid() == parent:
            # A call may fail: containerd may be busy, or the kubelet has removed the sandbox.
            with suppress(grpc.RpcError):
                _remove_ended(runtime)
            time.sleep(_POLL_SECONDS)


def _remove_ended(runtime: Any) -> None:
    """Removes the sandboxes that have ended and have no containers. Raises grpc.RpcError."""
    sandboxes = runtime.ListPodSandbox(messages.ListPodSandboxRequest(), timeout=_CALL_SECONDS)
    ended = {each.id for each in sandboxes.items if each.state == messages.SANDBOX_NOTREADY}
    if not ended:
        return
    containers = runtime.ListContainers(messages.ListContainersRequest(), timeout=_CALL_SECONDS)
    for sandbox in ended - {each.pod_sandbox_id for each in containers.containers}:
        request = messages.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
        runtime.RemovePodSandbox(request, timeout=_CALL_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
