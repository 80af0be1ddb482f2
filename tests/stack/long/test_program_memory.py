"""The memory limit of the stack's programs does not apply to tools."""

import psutil

from evershell.app.settings import Settings
from tests.support.sandbox import has_sandbox
from tests.support.stack import Stack, Workspace


def test_tools_do_not_inherit_the_memory_limit_of_the_programs(
    stack: Stack, workspace: Workspace
) -> None:
    programs = psutil.Process(stack.pid).children()
    names = {program.name() for program in programs}
    assert {"envoy", "postgres"} <= names
    own = [program for program in programs if program.name() in ("envoy", "postgres")]
    own += [psutil.Process(pid) for kind in ("serve", "fleet") for pid in stack.pids(kind)]
    assert len(own) == 6
    for program in own:
        assert program.rlimit(psutil.RLIMIT_DATA)[0] != psutil.RLIM_INFINITY, program
    # The limit of this process is the machine's own limit.
    machine = psutil.Process().rlimit(psutil.RLIMIT_DATA)[1]
    task_id = workspace.submit("ulimit -d")
    done = workspace.await_event("iteration_completed", task_id)["iteration_completed"]
    output = done["tool_call"]["result"]["output"].strip()
    if has_sandbox():
        # In a sandbox, tools have a separate limit.
        limit = Settings().tool_memory_mb * 2**20
        machine = limit if machine == psutil.RLIM_INFINITY else min(machine, limit)
    assert output == ("unlimited" if machine == psutil.RLIM_INFINITY else str(machine // 1024))
