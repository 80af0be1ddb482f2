"""The memory limit applies to the programs of the stack, and not to tools."""

import psutil

from tests.support.stack import Stack, Workspace


def test_programs_have_a_memory_limit_and_tools_have_none(
    stack: Stack, workspace: Workspace
) -> None:
    programs = psutil.Process(stack.pid).children()
    names = {program.name() for program in programs}
    assert {"envoy", "postgres"} <= names
    own = [program for program in programs if program.name() in ("envoy", "postgres")]
    own += [psutil.Process(pid) for kind in ("serve", "fleet") for pid in stack.pids(kind)]
    assert len(own) == 5
    for program in own:
        assert program.rlimit(psutil.RLIMIT_DATA)[0] != psutil.RLIM_INFINITY, program
    # This process has the limit of the machine.
    machine = psutil.Process().rlimit(psutil.RLIMIT_DATA)[1]
    task_id = workspace.submit("ulimit -d")
    done = workspace.await_event("iteration_completed", task_id)["iteration_completed"]
    output = done["tool_call"]["result"]["output"].strip()
    assert output == ("unlimited" if machine == psutil.RLIM_INFINITY else str(machine // 1024))
