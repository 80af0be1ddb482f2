"""A custom agent, run as a program or by the name of its function."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from evershell.agents.shutdown import ExitCode
from evershell.core.task import TaskStatus
from tests.support.waiting import eventually_async
from tests.unit.agents.faulty_plane import ControlPlane

AGENT = """
import sys
from evershell.agents import Task, in_process, run

def doubled(number):
    return 2 * number

async def ask(number):
    return {"model": "own", "content": f"twice {number}", "usage": {"input_tokens": 3}}

async def agent(task: Task) -> str:
    async for step in task.iterations():
        await step.model_call(ask(int(task.description)))
        return str(await step.tool_call("double", {}, in_process(doubled, int(task.description))))

run(agent)
"""
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "a program": lambda path: [str(path)],
    "a function of a file": lambda path: ["-P", "-m", "evershell.agents", f"{path}:agent"],
}


async def _agent(
    control_plane: ControlPlane, folder: Path, *command: str, **settings: Any
) -> asyncio.subprocess.Process:
    await control_plane.serve()
    spec = asdict(control_plane.spec("", **settings))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(spec).encode())
    process.stdin.close()
    return process


@pytest.mark.parametrize("how", COMMANDS)
async def test_an_agent_is_a_program_or_a_function_of_a_file(
    control_plane: ControlPlane, tmp_path: Path, how: str
) -> None:
    files, program = tmp_path / "files", tmp_path / "my_agent.py"
    files.mkdir()
    program.write_text(AGENT)
    process = await _agent(control_plane, files, *COMMANDS[how](program))
    try:
        await control_plane.reaches(lambda: control_plane.address)
        await control_plane.run_task("t1", "21")
        await control_plane.reaches(lambda: control_plane.end("t1"))
        end = control_plane.end("t1")
        assert (end.status, end.result) == (TaskStatus.COMPLETED, "42")
        (iteration,) = control_plane.iterations("t1")
        call = iteration.model_call
        assert (call.model, call.content, call.input_tokens) == ("own", "twice 21", 3)
        assert iteration.tool_call.result.output == "42"
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == ExitCode.STOPPED


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.py:agent", "set POD_ISOLATION=none"),
        ("my_agent.py", "is not `file.py:name` or `module:name`"),
        ("my_agent.py:missing", "has no function 'missing'"),
        ("broken.py:agent", "ModuleNotFoundError: No module named 'absent'"),
        ("exits.py:agent", "SystemExit: 2"),
        ("my_agent.py:doubled", "Write `async def doubled(task: Task)`"),
        ("wrapped.py:agent", "'agent' is not async"),
    ],
)
async def test_an_agent_that_cannot_be_loaded_says_why(
    control_plane: ControlPlane, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "my_agent.py").write_text(AGENT)
    (tmp_path / "broken.py").write_text("import absent")
    (tmp_path / "exits.py").write_text("import sys; sys.exit(2)")
    (tmp_path / "wrapped.py").write_text("def agent(task):\n    yield task")
    process = await _agent(control_plane, tmp_path, "-P", "-m", "evershell.agents", name)
    _, errors = await process.communicate()
    assert process.returncode == ExitCode.BAD_SPEC
    # The status reason of the workspace quotes the last line.
    assert reason in json.loads(errors.splitlines()[-1])["reason"]


KEY = 'sk-"very\\secret'
# An agent that writes its key wherever it can, as early as when its module is imported.
INDISCREET = """
import os, subprocess, sys
from evershell.agents import Task, in_process, keys

KEY = keys["MODEL_KEY"]
print(KEY)

def surroundings():
    print(KEY)
    return open("/proc/self/environ").read() + open("/proc/self/cmdline").read() + str(os.environ)

async def value(answer):
    print(KEY, file=sys.stderr)
    return answer

async def agent(task: Task) -> str:
    async for step in task.iterations():
        await step.model_call(value(f"content {KEY}"))
        assert "secret" not in await in_process(surroundings), "found"
        await step.tool_call(KEY, {"key": KEY}, value(f"output {KEY}"))
        if task.description == "raise":
            raise KeyError(KEY)
        return f"result {KEY}"
"""


@pytest.mark.parametrize("description", ["return", "raise"])
async def test_keys_reach_the_agent_and_are_in_no_event_and_in_no_log(
    control_plane: ControlPlane, tmp_path: Path, description: str
) -> None:
    (tmp_path / "my_agent.py").write_text(INDISCREET)
    command = ["-P", "-m", "evershell.agents", str(tmp_path / "my_agent.py:agent")]
    process = await _agent(control_plane, tmp_path, *command, keys={"MODEL_KEY": KEY})
    await control_plane.reaches(lambda: control_plane.address)
    await control_plane.run_task("t1", description)
    await control_plane.reaches(lambda: control_plane.end("t1"))
    process.terminate()
    _, errors = await process.communicate()
    end, (iteration,) = control_plane.end("t1"), control_plane.iterations("t1")
    expected = "[MODEL_KEY]"
    assert iteration.model_call.content == f"content {expected}"
    assert iteration.tool_call.result.output == f"output {expected}"
    assert (iteration.tool_call.name, iteration.tool_call.arguments) == (
        expected,
        f'{{"key": "{expected}"}}',
    )
    assert expected in (end.reason if description == "raise" else end.result)
    told = f"{errors.decode()}{end}{iteration}"
    assert "secret" not in told
    # Each of the two calls prints the key once, and the process of `in_process` prints it twice: at
    # its import and in `surroundings`. If the task fails, the key is also in the traceback.
    assert errors.decode().count(expected) >= 4 + (description == "raise")


# An agent whose logger got its standard error stream before the agent started.
LOGGING = """
import logging
from evershell.agents import Task, keys, run

log = logging.getLogger("own")
log.addHandler(logging.StreamHandler())

async def agent(task: Task) -> None:
    log.error("own log with %s", keys["MODEL_KEY"])

run(agent)
"""


async def test_a_logger_from_before_the_keys_prints_none(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    (tmp_path / "my_agent.py").write_text(LOGGING)
    process = await _agent(
        control_plane, tmp_path, str(tmp_path / "my_agent.py"), keys={"MODEL_KEY": KEY}
    )
    await control_plane.reaches(lambda: control_plane.address)
    await control_plane.run_task("t1", "log")
    await control_plane.reaches(lambda: control_plane.end("t1"))
    process.terminate()
    _, errors = await process.communicate()
    assert b"\nown log with [MODEL_KEY]\n" in errors


# An agent that harms its process in the way that the task's description names.
CARELESS = """
import asyncio, multiprocessing, os, sys, time
from contextlib import suppress
from evershell.agents import Task, in_thread, keys
from evershell.agents import agent as program

program._BLOCKED_SECONDS = 1.0

KEY = keys["MODEL_KEY"]

async def leave():
    sys.exit(3)

async def value(answer):
    return answer

def end_a_child():
    fork = multiprocessing.get_context("fork")
    runs = fork.Event()
    child = fork.Process(target=hang, args=(runs,))
    child.start()
    runs.wait()
    child.terminate()
    child.join()

def hang(runs):
    runs.set()
    time.sleep(600)

def blocking_code():
    time.sleep(600)

async def agent(task: Task) -> str:
    async for step in task.iterations():
        match task.description:
            case "exit":
                sys.exit(3)
            case "exit in a call":
                await step.tool_call("t", {}, leave())
            case "interrupt":
                raise KeyboardInterrupt
            case "exit in the background":
                asyncio.create_task(leave())
                await asyncio.sleep(0)
            case "print":
                for part in ("a ", KEY[:5], KEY[5:], " b ", KEY[:5], "c\\n"):
                    print(part, end="", flush=True)
                sys.stderr.writelines([KEY, "\\n"])
            case "close":
                sys.stdout.close()
                os.close(1)
            case "fork":
                await in_thread(end_a_child)
            case "block":
                blocking_code()
        await step.tool_call("t", {}, value("output"))
        return "done"

with suppress(ImportError):
    import uvloop
    uvloop.install()
"""


@pytest.fixture
async def careless(
    control_plane: ControlPlane, tmp_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    (tmp_path / "my_agent.py").write_text(CARELESS)
    command = ["-P", "-m", "evershell.agents", str(tmp_path / "my_agent.py:agent")]
    given = {"MODEL_KEY": KEY, "NO_KEY": "", "LONGER": f"{KEY} and more"}
    process = await _agent(control_plane, tmp_path, *command, keys=given)
    await control_plane.reaches(lambda: control_plane.address)
    yield process
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def _end_of(control_plane: ControlPlane, description: str) -> Any:
    await control_plane.run_task(description, description)
    await control_plane.reaches(lambda: control_plane.end(description))
    return control_plane.end(description)


async def test_an_exit_of_the_agents_code_ends_only_its_task(
    control_plane: ControlPlane, careless: asyncio.subprocess.Process
) -> None:
    for description in ("exit", "exit in a call"):
        end = await _end_of(control_plane, description)
        assert (end.status, end.reason) == (TaskStatus.FAILED, "The agent failed: SystemExit: 3")
    (iteration,) = control_plane.iterations("exit in a call")
    assert iteration.tool_call.result.output == "SystemExit: 3"
    end = await _end_of(control_plane, "interrupt")
    assert end.reason == "The agent failed: KeyboardInterrupt: "
    for description in ("exit in the background", "a plain task"):
        assert (await _end_of(control_plane, description)).status is TaskStatus.COMPLETED


async def test_the_end_of_a_forked_child_does_not_end_the_agent(
    control_plane: ControlPlane, careless: asyncio.subprocess.Process
) -> None:
    for description in ("fork", "a plain task"):
        assert (await _end_of(control_plane, description)).status is TaskStatus.COMPLETED


async def test_a_key_that_is_printed_in_parts_is_not_in_the_log(
    control_plane: ControlPlane, careless: asyncio.subprocess.Process
) -> None:
    """A text that only begins like the key stays in the log."""
    await _end_of(control_plane, "print")
    careless.terminate()
    output, errors = await careless.communicate()
    assert output.decode() == f"a [MODEL_KEY] b {KEY[:5]}c\n"
    assert "[MODEL_KEY]\n" in errors.decode()


async def test_an_agent_that_closes_its_output_ends_when_it_is_asked_to(
    control_plane: ControlPlane, careless: asyncio.subprocess.Process
) -> None:
    assert (await _end_of(control_plane, "close")).status is TaskStatus.COMPLETED
    careless.terminate()
    async with asyncio.timeout(30):
        await careless.wait()
    assert careless.returncode == ExitCode.STOPPED


async def test_the_log_shows_where_the_agent_blocks_the_event_loop(
    control_plane: ControlPlane, careless: asyncio.subprocess.Process
) -> None:
    await control_plane.run_task("t1", "block")
    assert careless.stderr is not None
    async with asyncio.timeout(60):
        while b"in blocking_code" not in await careless.stderr.readline():
            assert careless.returncode is None


# A program that ends when its standard input ends.
WATCHED = """
import asyncio, sys
from evershell.agents import agent

agent._BLOCKED_SECONDS = 1.0

async def main():
    watching = asyncio.create_task(agent._show_blocking())
    reading = asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    await asyncio.sleep(0)
    print("runs", flush=True)
    while not reading.done():
        # Most likely, this runs when the process is stopped.
        sum(range(1_000_000))
        await asyncio.sleep(0)
    watching.cancel()

asyncio.run(main())
"""


async def test_an_agent_that_was_stopped_has_not_blocked_the_event_loop() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WATCHED, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 2.0
        await eventually_async(lambda: time.monotonic() > until)
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            _, errors = await process.communicate(b"")
        assert (process.returncode, errors.decode()) == (0, "")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# An agent whose function and thread never end.
STUBBORN = """
import asyncio, threading, time
from evershell.agents import Task
from evershell.agents import session

session._CLOSING_SECONDS = 0.1

async def agent(task: Task) -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()
    open("begun", "w").close()
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass
"""


async def test_an_agent_ends_even_if_its_function_does_not(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    (tmp_path / "my_agent.py").write_text(STUBBORN)
    command = ["-P", "-m", "evershell.agents", str(tmp_path / "my_agent.py:agent")]
    process = await _agent(control_plane, tmp_path, *command)
    await control_plane.reaches(lambda: control_plane.address)
    await control_plane.run_task("t1", "go")
    await eventually_async((tmp_path / "begun").exists)
    process.terminate()
    await process.communicate()
    assert process.returncode == ExitCode.STOPPED
    assert control_plane.end("t1") is None
