"""The list with 5,000 workspaces, of which up to 500 change each second."""

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Request, expect

from tests.clients.console.console_page import Console
from tests.support.lengths import smoke
from tests.support.stack import Stack
from tests.support.waiting import eventually

WORKSPACES, BUSY = 5_000, 500
CHANGES, PAUSE_SECONDS = 50, 0.1
SECONDS = 6
# Scrolls without a pause. Returns the frames per second, the longest time between two frames in
# milliseconds, and the largest number of rows that were in the page at the same time.
SCROLL = """
(seconds) => new Promise((done) => {
  const view = document.querySelector(".rows");
  const end = view.scrollHeight - view.clientHeight;
  let frames = -1, longest = 0, first = 0, last = 0, top = 0, most = 0;
  const draw = (now) => {
    frames += 1;
    if (frames) longest = Math.max(longest, now - last);
    else first = now;
    last = now;
    top = (top + 40) % end;
    view.scrollTop = top;
    most = Math.max(most, view.querySelectorAll(".row").length);
    if (now - first < seconds * 1000) requestAnimationFrame(draw);
    else done([frames * 1000 / (now - first), longest, most]);
  };
  requestAnimationFrame(draw);
})
"""
INSERT = """
    INSERT INTO workspaces (
        id, org_id, name, status, status_reason, created_at, updated_at, epoch, last_seq,
        current_task_id
    )
    SELECT 'ws_many_' || i, 'org_many', 'many-' || i,
        CASE WHEN i <= %(busy)s THEN 'busy' WHEN i = %(all)s THEN 'failed' ELSE 'idle' END, '',
        now(), now() - i * interval '1 s', 1, 0, CASE WHEN i <= %(busy)s THEN 'task_many_' || i END
    FROM generate_series(1, %(all)s) AS i;
    INSERT INTO tasks (
        id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
        created_at, started_at, reason, result, forced, input_tokens, output_tokens, model_calls,
        tool_calls
    )
    SELECT 'task_many_' || i, 'ws_many_' || i, 'make report ' || i, '{}', 100, 'running',
        'tool_call', 1, now(), now() - i * interval '1 s', '', '', false, 0, 0, 0, 0
    FROM generate_series(1, %(busy)s) AS i
"""
# As the service does, each change writes an event with a position.
CHANGE = """
    WITH changed AS (
        UPDATE workspaces SET updated_at = now(), last_seq = last_seq + 1
        WHERE id IN (
            SELECT 'ws_many_' || (1 + floor(random() * %(all)s))::int
            FROM generate_series(1, %(changes)s)
        )
        RETURNING id, last_seq, current_task_id
    ), written AS (
        INSERT INTO events (workspace_id, seq, type, time, payload, position)
        SELECT id, last_seq, 'workspace_resumed', now(), '{"epoch": 1}', nextval('event_positions')
        FROM changed
    )
    UPDATE tasks SET iterations = iterations + 1, input_tokens = input_tokens + 100
    WHERE id IN (SELECT current_task_id FROM changed)
"""
DELETE = (
    "DELETE FROM events WHERE workspace_id LIKE 'ws_many_%'; "
    "DELETE FROM tasks WHERE id LIKE 'task_many_%'; "
    "DELETE FROM workspaces WHERE org_id = 'org_many'; "
    "DELETE FROM api_keys WHERE org_id = 'org_many'; DELETE FROM orgs WHERE id = 'org_many'"
)
MOST = "SELECT max(iterations) FROM tasks WHERE id LIKE 'task_many_%'"
VALUES = {"all": WORKSPACES, "busy": BUSY, "changes": CHANGES}


@pytest.fixture
def key(stack: Stack) -> Iterator[str]:
    """A key of an organization with many workspaces.

    The workspaces have no pods. The fleet controller is frozen, so that it does not act on them.
    """
    secret = f"sk_{secrets.token_urlsafe(32)}"
    with stack.frozen("fleet"), stack.database() as connection:
        connection.execute("INSERT INTO orgs (id, slug) VALUES ('org_many', 'many')")
        connection.execute(
            "INSERT INTO api_keys (id, org_id, name, template, sha256, created_at) "
            "VALUES ('key_many', 'org_many', '', 'full_access', %s, now())",
            (hashlib.sha256(secret.encode()).digest(),),
        )
        for statement in INSERT.split(";"):
            connection.execute(statement, VALUES)
        yield secret
        connection.execute(DELETE)


@contextmanager
def changing(stack: Stack) -> Iterator[None]:
    """Changes the workspaces all the time inside the block."""
    stop = threading.Event()

    def change() -> None:
        with stack.database() as connection:
            while not stop.wait(PAUSE_SECONDS):
                connection.execute(CHANGE, VALUES)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("width", smoke([1280, 400], [1280]))
def test_only_rows_near_the_view_are_drawn(
    browser: Browser, stack: Stack, key: str, width: int
) -> None:
    console = Console(browser, stack.ready["rest_url"], width=width)
    with changing(stack):
        sign_in(console, key)
        for _ in range(3):
            frames, longest_ms, most_rows = console.page.evaluate(SCROLL, SECONDS)
            print(f"{width} px: {frames:.1f} frames a second, longest {longest_ms:.0f} ms")
            # A list that drew all 5,000 rows would take seconds for each frame.
            assert 0 < most_rows < 100
    console.check()
    console.close()


def sign_in(console: Console, key: str) -> None:
    """Signs in, and waits until the whole list has been read."""
    console.sign_in(key)
    expect(console.page.get_by_role("button", name=f"all {WORKSPACES:,}")).to_be_visible()
    expect(console.page.get_by_role("button", name=f"running {BUSY}")).to_be_visible()
    console.await_list()
    expect(console.rows.first).to_contain_text(f"many-{WORKSPACES}")


def test_only_changes_are_read(browser: Browser, stack: Stack, key: str) -> None:
    console = Console(browser, stack.ready["rest_url"])
    page = console.page
    with changing(stack):
        sign_in(console, key)
        whole, before = console.whole_list_calls(), len(console.list_calls())
        # 25 pages of workspaces, and 3 of tasks.
        assert len(whole) == 28
        page.evaluate(SCROLL, SECONDS)
        calls = len(console.list_calls()) - before
        print(f"{calls / SECONDS:.1f} calls a second")
    # At most two calls in 0.3 s for what has changed, and two a second for what is in view.
    assert 0 < calls < SECONDS * 10
    # The list has all changes soon after the last one.
    with stack.database() as connection:
        most = connection.execute(MOST).fetchone()
    assert most
    page.get_by_role("columnheader", name="Iteration").get_by_role("button").click()
    expect(console.rows.first.locator(".iterations")).to_have_text(str(most[0] + 1))

    # The use of the running tasks in view is read every 2 s, by one call.
    def reads_tasks(request: Request) -> bool:
        return "/v1/tasks?" in request.url

    def is_one_call() -> bool:
        with page.expect_request(reads_tasks):
            pass
        before = len(console.list_calls())
        with page.expect_request(reads_tasks) as of_view:
            pass
        is_small = of_view.value.url.count("workspace_ids=") < 100
        return is_small and len(console.list_calls()) == before + 1

    # The last changes may still be read at first.
    eventually(is_one_call)
    # Nothing is read while nothing runs in view.
    page.get_by_role("button", name=f"idle {WORKSPACES - BUSY - 1:,}").click()
    expect(console.rows.first.locator(".badge")).to_have_text("idle")
    before = len(console.list_calls())
    page.evaluate(SCROLL, SECONDS)
    assert len(console.list_calls()) == before
    assert console.whole_list_calls() == whole
    assert console.stream_ids() == [None]
    console.check()
    console.close()
