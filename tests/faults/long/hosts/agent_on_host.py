"""Becomes the agent of a workspace, on one of the hosts of a test. AGENT_COMMAND runs this script.

The arguments are the hosts: for each host, the file of its network namespace, `=`, and its address.
The process keeps its id, by which the fleet controller knows the agent.
"""

import json
import os
import sys
import zlib


def host_index(workspace_id: str, hosts: int) -> int:
    """Returns the index of the host on which the agent of the workspace runs."""
    return zlib.crc32(workspace_id.encode()) % hosts


def main(*hosts: str) -> None:
    """Sets the agent's address to its host's address, and becomes the agent on that host."""
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
