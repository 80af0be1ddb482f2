"""Measures the console in a browser with 5,000 workspaces.

`python -m tests.bench.console` prints how smoothly the list scrolls, how soon it shows a change,
and what that costs the service. The workspaces are rows of the database without agents, and the
fleet controller is stopped meanwhile.
"""

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import psycopg
from playwright.sync_api import Browser, expect, sync_playwright

from tests.clients.long.console.console_page import Console
from tests.support.browser import QUIET, executable
from tests.support.stack import Stack

WORKSPACES = 5_000
BUSY = 500
CHANGES = 20
ROUNDS = 3
SCROLL_SECONDS = 6
COST_SECONDS = 10
# Scrolls by 45 pixels in each frame, and returns the times between frames.
SCROLL = """
(seconds) => new Promise((resolve) => {
  const rows = document.querySelector(".rows");
  rows.scrollTop = 0;
  const frames = [];
  const begun = performance.now();
  let last = begun;
  const frame = (now) => {
    frames.push(now - last);
    last = now;
    rows.scrollTop += 45;
    if (now - begun < seconds * 1000) requestAnimationFrame(frame);
    else resolve(frames.slice(1));
  };
  requestAnimationFrame(frame);
})
"""
ADD_WORKSPACES = """
INSERT INTO workspaces (id, org_id, name, status, status_reason, created_by_user_id, created_at,
    updated_at, current_task_id, epoch, last_seq, lease_expires_at)
SELECT 'ws_' || lpad(i::text, 26, '0'), 'org_demo', 'workspace ' || i,
    (CASE WHEN i <= %(busy)s THEN 'busy' ELSE 'stopped' END)::workspace_status, '', 'user_owner',
    now(), now() - i * interval '1 s',
    CASE WHEN i <= %(busy)s THEN 'task_' || lpad(i::text, 26, '0') END, 1, 0,
    now() + interval '1 day'
FROM generate_series(1, %(all)s) i
"""
ADD_TASKS = """
INSERT INTO tasks (id, workspace_id, description, metadata, max_iterations, status, phase,
    iterations, created_at, started_at, reason, result, forced, input_tokens, output_tokens,
    model_calls, tool_calls)
SELECT 'task_' || lpad(i::text, 26, '0'), 'ws_' || lpad(i::text, 26, '0'),
    'Repair the build of module ' || i, '{}', 100, 'running', 'tool_call', i %% 40, now(),
    now() - i * interval '1 s', '', '', false, i * 731, i * 97, i %% 40, i %% 40
FROM generate_series(1, %(busy)s) i
"""


def main() -> None:
    with ExitStack() as resources:
        folder = resources.enter_context(tempfile.TemporaryDirectory())
        # The list must stay below the limit that customers have.
        stack = Stack(Path(folder) / "state", RATE_LIMIT="on")
        resources.callback(stack.kill_if_running)
        stack.start()
        playwright = resources.enter_context(sync_playwright())
        path = executable()
        assert path is not None, "apt-get install chromium"
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        resources.callback(browser.close)
        resources.enter_context(stack.frozen("fleet"))
        with stack.database() as connection:
            numbers = {"busy": BUSY, "all": WORKSPACES}
            connection.execute(ADD_WORKSPACES, numbers)
            connection.execute(ADD_TASKS, numbers)
            try:
                _measure(stack, browser, connection)
            finally:
                connection.execute("DELETE FROM tasks WHERE id LIKE 'task_0000000000%'")
                connection.execute("DELETE FROM workspaces WHERE id LIKE 'ws_0000000000%'")


def _measure(stack: Stack, browser: Browser, connection: "psycopg.Connection[Any]") -> None:
    console = Console(browser, stack.ready["rest_url"])
    begun = time.monotonic()
    console.sign_in(stack.tokens["full_access"])
    expect(console.page.locator(".rows .row").first).to_be_visible()
    print(f"first rows: {(time.monotonic() - begun) * 1000:.0f} ms")
    expect(console.page.locator(".summary")).to_contain_text(
        f"{WORKSPACES + 1:,} workspaces, {BUSY} busy", timeout=30_000
    )
    print(f"the whole list of {WORKSPACES:,}: {(time.monotonic() - begun) * 1000:.0f} ms")
    for _ in range(ROUNDS):
        _print_scrolling(console)
    _print_changes(console, connection)
    # With the tasks of all rows in view.
    console.find("")
    _print_cost(stack)
    expect(console.page.get_by_role("alert")).to_have_count(0)
    console.check()
    console.close()


def _print_scrolling(console: Console) -> None:
    frames: list[float] = console.page.evaluate(SCROLL, SCROLL_SECONDS)
    frames.sort()
    rate = 1000 * len(frames) / sum(frames)
    late = frames[int(len(frames) * 0.99)]
    print(f"scrolling: {rate:.1f} frames a second, p99 {late:.0f} ms, longest {frames[-1]:.0f} ms")


def _print_changes(console: Console, connection: "psycopg.Connection[Any]") -> None:
    """How soon a change in the database is in view, at a random time of the refresh."""
    console.page.evaluate("() => { document.querySelector('.rows').scrollTop = 0; }")
    console.find("workspace 1234")
    status = console.page.locator(".rows .row .status")
    seconds = []
    for number in range(CHANGES):
        wanted = "failed" if number % 2 == 0 else "stopped"
        time.sleep(number / CHANGES)
        begun = time.monotonic()
        connection.execute(
            "UPDATE workspaces SET status = %s, updated_at = now() WHERE name = 'workspace 1234'",
            (wanted,),
        )
        expect(status).to_have_text(wanted)
        seconds.append(time.monotonic() - begun)
    seconds.sort()
    print(
        f"a change of one workspace is in view after: median {statistics.median(seconds):.2f} s, "
        f"longest {seconds[-1]:.2f} s of {CHANGES}"
    )


def _print_cost(stack: Stack) -> None:
    """The processor time of the service while one console shows the list."""
    before = _processor_seconds(stack)
    time.sleep(COST_SECONDS)
    after = _processor_seconds(stack)
    for program, used in after.items():
        share = (used - before.get(program, used)) / COST_SECONDS
        print(f"{program}: {share * 100:.0f} % of a core")


def _processor_seconds(stack: Stack) -> dict[str, float]:
    found: dict[str, float] = {}
    for process in psutil.Process(stack.pid).children(recursive=True):
        command = " ".join(process.cmdline())
        names = {" serve": "workers", "envoy": "Envoy", "postgres": "PostgreSQL"}
        for part, name in names.items():
            if part in command:
                times = process.cpu_times()
                found[name] = found.get(name, 0.0) + times.user + times.system
                break
    return found


if __name__ == "__main__":
    main()
