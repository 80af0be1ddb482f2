"""`python -m evershell.agents`: the program in a pod. The fleet controller starts it.

It is not a command of `python -m evershell.commands`, because click takes 40 ms to import.
"""

import gc
import json
import os
import resource
import sys


def main() -> int:
    """Runs one agent, with a spec as JSON on standard input. Returns its exit code."""
    # Most of the start is imports. They make no garbage, and looking for it takes a tenth of their
    # time.
    gc.disable()
    # As in evershell.cli.main: no lines of gRPC's library in C, and none of its handlers of fork().
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import asyncio

    from evershell.agents.program import run
    from evershell.agents.shutdown import ExitCode
    from evershell.pod.spec import PodSpec
    from evershell.telemetry import logs

    gc.freeze()
    gc.enable()
    # Lifts the memory limit that is inherited from the controller, because tools may use more
    # memory than a program of the stack.
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        spec = PodSpec.read(json.load(sys.stdin))
    except (ValueError, TypeError) as error:
        sys.stderr.write(f"The spec on standard input is not valid: {error}.\n")
        return ExitCode.BAD_SPEC
    if sys.version_info < (3, 12):
        # The default of later versions. That of 3.11 starts a thread for each process of a tool,
        # and reports its end later.
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    log = logs.configure_plain("agent", workspace_id=spec.workspace_id, epoch=spec.epoch)
    return asyncio.run(run(spec, log))


if __name__ == "__main__":
    sys.exit(main())
