"""The TypeScript client in Debian's Node, and in a browser whose requests are cross-site."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clients.long.proxy import Proxy, proxy
from tests.support import typescript_client
from tests.support.documents import steps
from tests.support.npm import node, npm_tool
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Gate, Stack, Workspace
from tests.support.waiting import eventually

PROGRAMS = Path(__file__).with_name("programs")
BROWSER = "esbuild/bin/esbuild"

Step = Callable[..., Any]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled steps. Their types are checked strictly."""
    folder = tmp_path_factory.mktemp("programs")
    typescript_client.link(folder)
    (folder / "package.json").write_text('{"type": "module"}')
    for program in PROGRAMS.iterdir():
        (folder / program.name).write_text(program.read_text())
    tsc = typescript_client.package() / "node_modules" / "typescript" / "bin" / "tsc"
    done = node(tsc, "--project", ".", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def in_node(programs: Path) -> Step:
    def step(name: str, **given: Any) -> Any:
        executable = typescript_client.node_20()
        arguments = (name, json.dumps(given))
        done = node(programs / "run.js", *arguments, folder=programs, executable=executable)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return step


@pytest.fixture
def in_browser(programs: Path, request: pytest.FixtureRequest) -> Iterator[Step]:
    bundle = programs / "bundle.js"
    options = ["--bundle", "--format=iife", "--global-name=program", f"--outfile={bundle}"]
    npm_tool(BROWSER, "steps.js", *options, folder=programs)
    page = request.getfixturevalue("browser").new_page()
    page.add_script_tag(content=bundle.read_text())
    yield lambda name, **given: page.evaluate(
        "([name, given]) => program.steps[name](given)", [name, given]
    )
    page.close()


@pytest.fixture(params=["in_node", "in_browser"])
def step(request: pytest.FixtureRequest) -> Step:
    """Runs a step in Node or in a browser."""
    found: Step = request.getfixturevalue(request.param)
    return found


def service(stack: Stack, workspace: Workspace) -> dict[str, str]:
    url, token = stack.ready["rest_url"], stack.tokens["full_access"]
    return {"url": url, "token": token, "workspaceId": workspace.id}


def test_an_error_has_its_code_and_its_details(
    stack: Stack, workspace: Workspace, step: Step
) -> None:
    nothing = f"http://127.0.0.1:{free_ports(1)[0]}"
    read_only = stack.tokens["read_only"]
    seen = step("errors", **service(stack, workspace), readOnly=read_only, nothing=nothing)
    assert {name: each["code"] for name, each in seen.items()} == {
        "unknown": "workspace_not_found",
        "invalid": "validation_error",
        "empty": "validation_error",
        "denied": "permission_denied",
        "token": "unauthenticated",
        "unreachable": "unavailable",
    }
    assert seen["unknown"]["resourceName"] == "ws_unknown"
    assert seen["invalid"]["fields"] == {"reason": "has 501 characters; at most 500 are allowed"}
    assert seen["denied"]["required"] == ["workspace:write", "workspace:write:own"]
    # The client itself has refused one of the calls, and one call has not reached the service.
    without_id = {name for name, each in seen.items() if len(each["requestId"]) != 36}
    assert without_id == {"empty", "unreachable"}
    assert [name for name, each in seen.items() if not each["isFromService"]] == ["unreachable"]


def test_cancel_and_wait_returns_the_task_as_it_ended(
    stack: Stack, workspace: Workspace, step: Step
) -> None:
    assert step("cancelAndWait", **service(stack, workspace)) == {
        "late": [True, "accepted"],
        "ended": ["already_requested", "cancelled", "first"],
        "idle": "no_active_task",
    }


def test_a_watch_resumes_after_each_break(
    stack: Stack, workspace: Workspace, gate: Gate, step: Step
) -> None:
    task_id = workspace.submit(*[gate.command] * 3)
    # The first stream is reset. Later streams are cut after an event that the client has seen.
    with proxy(stack, [1]) as used, ThreadPoolExecutor(1) as pool:
        given = service(stack, workspace) | {"url": used.url, "taskId": task_id}
        cutting = pool.submit(cut, used, workspace, gate)
        seen = step("watch", **given)
        cutting.result()
        assert used.cuts == 1
    log = [[each["seq"], each["type"]] for each in workspace.log() if each["task_id"] == task_id]
    assert seen == log and log[-1][1] == "task_completed"


def cut(used: Proxy, workspace: Workspace, gate: Gate) -> None:
    """Cuts the connections after each of the first two iterations."""
    seq = 0
    for _ in range(2):
        gate.open()
        seq = workspace.await_event("iteration_completed", after=seq)["seq"]
        eventually(lambda: seq in used.last_ids)
        used.unplug()
        used.plug_in()
    gate.open()


def test_a_watch_of_the_organization_resumes_after_a_break(
    stack: Stack, workspace: Workspace, gate: Gate, step: Step
) -> None:
    begin, is_heartbeat = step("position", **service(stack, workspace))
    assert is_heartbeat
    task_id = workspace.submit(gate.command)

    def cut_once(used: Proxy) -> None:
        eventually(lambda: any(used.last_ids))
        used.unplug()
        used.plug_in()
        gate.open()

    # The first stream is reset, and a later one is cut after an event.
    with proxy(stack, [1]) as used, ThreadPoolExecutor(1) as pool:
        given = service(stack, workspace) | {"url": used.url, "taskId": task_id, "after": begin}
        cutting = pool.submit(cut_once, used)
        seen = step("watchOrganization", **given)
        cutting.result()
        assert used.cuts == 1
    log = [each["type"] for each in workspace.log() if each["task_id"] == task_id]
    assert [kind for _, kind in seen] == log
    positions = [position for position, _ in seen]
    assert positions == sorted(set(positions)) and positions[0] > int(begin)
    # A watch that begins after the second event has the rest.
    later = service(stack, workspace) | {"taskId": task_id, "after": str(positions[1])}
    assert step("watchOrganization", **later) == seen[2:]


def test_a_watch_ends_with_its_signal(stack: Stack, workspace: Workspace, step: Step) -> None:
    assert step("abort", **service(stack, workspace)) == "enough"


def test_a_cancellation_that_names_no_task_is_not_repeated(
    stack: Stack, workspace: Workspace, in_node: Step
) -> None:
    with ExitStack() as resources:
        proxies = [resources.enter_context(proxy(stack, [1])) for _ in range(3)]
        given = service(stack, workspace) | {"urls": [each.url for each in proxies]}
        seen = in_node("repeats", **given)
        requests = [len(each.last_ids) for each in proxies]
    assert seen["refused"] == ["unavailable", False]
    assert seen["outcome"] == "already_requested"
    tasks = workspace.rest.get(f"{workspace.path}/tasks")["tasks"]
    assert [each["id"] for each in tasks] == [seen["taskId"]]
    # The first proxy gets the submission twice, and then reads of the task. The last one gets the
    # cancellation twice, and then the wait for the end.
    assert requests[0] >= 3 and requests[1] == 1 and requests[2] >= 3


def test_the_wait_for_an_agent_that_cannot_be_reached_names_the_task(
    stack: Stack, workspace: Workspace, gate: Gate, in_node: Step
) -> None:
    task_id = workspace.begin(gate.command)
    with proxy(stack) as used, ThreadPoolExecutor(1) as pool:
        with stack.frozen_process(stack.agent_pid(workspace.id)):
            given = service(stack, workspace) | {"url": used.url}
            seeing = pool.submit(in_node, "waitForUnreachable", **given)
            # The first call has been answered with `agent_unreachable`.
            eventually(lambda: len(used.last_ids) > 1 or seeing.done())
        gate.open()
        assert seeing.result() == [task_id, "already_requested", "cancelled"]


@pytest.mark.parametrize("node_of", [typescript_client.node_20, typescript_client.newest_node])
def test_the_program_of_the_page_runs(
    stack: Stack, tmp_path: Path, node_of: Callable[[], Path]
) -> None:
    (program,) = (
        step
        for step in steps((ROOT / "docs" / "typescript-client.md").read_text())
        if "cancelAndWait" in step.block.text
    )
    typescript_client.link(tmp_path)
    (tmp_path / "cancel.mjs").write_text(program.block.text)
    done = node(
        tmp_path / "cancel.mjs",
        folder=tmp_path,
        executable=node_of(),
        REST_URL=stack.ready["rest_url"],
        TOKEN=stack.tokens["full_access"],
        WORKSPACE_ID=stack.ready["demo"]["workspace_id"],
    )
    assert done.stdout == program.expected, done.stderr
