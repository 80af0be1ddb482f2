"""The list with 5,000 workspaces, of which up to 500 change each second."""

import hashlib
import secrets
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.clients.console.console_page import Console
from tests.support.lengths import smoke
from tests.support.stack import Stack

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
CHANGE = """
    WITH changed AS (
        UPDATE workspaces SET updated_at = now()
        WHERE id IN (
            SELECT 'ws_many_' || (1 + floor(random() * %(all)s))::int
            FROM generate_series(1, %(changes)s)
        )
        RETURNING current_task_id
    )
    UPDATE tasks SET iterations = iterations + 1, input_tokens = input_tokens + 100
    WHERE id IN (SELECT current_task_id FROM changed)
"""
DELETE = (
    "DELETE FROM tasks WHERE id LIKE 'task_many_%'; "
    "DELETE FROM workspaces WHERE org_id = 'org_many'; "
    "DELETE FROM api_keys WHERE org_id = 'org_many'; DELETE FROM orgs WHERE id = 'org_many'"
)
VALUES = {"all": WORKSPACES, "busy": BUSY, "changes": CHANGES}


@pytest.fixture
def key(stack: Stack) -> Iterator[str]:
    """A key of an organization with many workspaces, which change all the time.

    The workspaces have no pods. The fleet controller is frozen, so that it does not act on them.
    """
    secret, stop = f"sk_{secrets.token_urlsafe(32)}", threading.Event()

    def change() -> None:
        with stack.database() as connection:
            while not stop.wait(PAUSE_SECONDS):
                connection.execute(CHANGE, VALUES)

    changing = threading.Thread(target=change)
    with stack.frozen("fleet"), stack.database() as connection:
        connection.execute("INSERT INTO orgs (id, slug) VALUES ('org_many', 'many')")
        connection.execute(
            "INSERT INTO api_keys (id, org_id, name, template, sha256, created_at) "
            "VALUES ('key_many', 'org_many', '', 'full_access', %s, now())",
            (hashlib.sha256(secret.encode()).digest(),),
        )
        for statement in INSERT.split(";"):
            connection.execute(statement, VALUES)
        changing.start()
        yield secret
        stop.set()
        changing.join()
        connection.execute(DELETE)


@pytest.mark.parametrize("width", smoke([1280, 400], [1280]))
def test_only_rows_near_the_view_are_drawn(
    browser: Browser, stack: Stack, key: str, width: int
) -> None:
    console = Console(browser, stack.ready["rest_url"], width=width)
    console.sign_in(key)
    everything = console.page.get_by_role("button", name=f"all {WORKSPACES:,}")
    expect(everything).to_be_visible()
    expect(console.rows.first).to_contain_text(f"many-{WORKSPACES}")
    expect(console.page.get_by_role("button", name=f"busy {BUSY}")).to_be_visible()
    for _ in range(3):
        frames, longest_ms, most_rows = console.page.evaluate(SCROLL, SECONDS)
        print(f"{width} px: {frames:.1f} frames a second, longest {longest_ms:.0f} ms")
        # A list that drew all 5,000 rows would take seconds for each frame.
        assert 0 < most_rows < 100
    console.check()
    console.close()
