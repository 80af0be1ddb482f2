"""Becomes the agent of a workspace on one of the hosts of a test. AGENT_COMMAND starts it.

Run as a script, with the hosts as arguments: each a file of a network namespace, `=`, and an
address. The process keeps its id, by which the fleet controller knows the agent.
"""

import json
import os
import sys
import zlib


def host_index(workspace_id: str, hosts: int) -> int:
    """Which of the hosts the agent of the workspace runs on."""
    return zlib.crc32(workspace_id.encode()) % hosts


def main(*hosts: str) -> None:
    """Gives the agent an address of its host, and becomes the agent there."""
    spec = json.load(sys.stdin)
    namespace, _, spec["listen_host"] = hosts[
        host_index(spec["workspace_id"], len(hosts))
    ].rpartition("=")
    memory = os.memfd_create("spec")
    os.write(memory, json.dumps(spec).encode())
    os.lseek(memory, 0, os.SEEK_SET)
    os.dup2(memory, 0)
    agent = [sys.executable, "-P", "-m", "evershell.agents"]
    os.execvp("nsenter", ["nsenter", f"--net={namespace}", "--", *agent])  # noqa: S606, S607


if __name__ == "__main__":
    main(*sys.argv[1:])
