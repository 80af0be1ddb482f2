"""50 concurrent callers submit tasks, cancel batches of tasks, and put the organization on hold."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tests.support.promises import read_history, violations
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually
from tests.support.wires import Grpc, grpc_failure

CALLER = "other_org"
WORKSPACES, CALLERS = 6, 50
_TASKS = (
    "SELECT t.id, t.created_at, t.status, t.cancel_requested_at IS NOT NULL FROM tasks t "
    "JOIN workspaces w ON w.id = t.workspace_id WHERE w.id = ANY (%s)"
)


def test_no_task_is_submitted_after_a_hold_and_every_earlier_one_is_cancelled_once(
    stack: Stack,
) -> None:
    workspaces = [Workspace(stack, CALLER) for _ in range(WORKSPACES)]
    ids = [each.id for each in workspaces]
    token = stack.tokens[CALLER]
    callers = [
        Grpc(address, token) for _ in range(CALLERS // 2) for address in stack.worker_addresses()
    ]
    barrier = threading.Barrier(CALLERS)
    held = threading.Event()
    late: list[Any] = []
    begun: list[str] = []
    # Cancellations without an answer: on a busy machine, a statement may take too long.
    lost: list[grpc.RpcError] = []

    def accepted(rpc: str, client: Grpc, **fields: Any) -> int | None:
        """How many tasks the call has cancelled. None if it has no answer."""
        try:
            answer = client.call(rpc, **fields)
        except grpc.RpcError as error:
            assert grpc_failure(error).slug == "unavailable", error
            lost.append(error)
            return None
        assert rpc != "HoldOrg" or answer["remaining"] == 0
        return int(answer["accepted"])

    def submit(number: int, client: Grpc) -> list[str]:
        """Submits tasks until the hold refuses one. Returns the ids of the tasks."""
        barrier.wait(30)
        made: list[str] = []
        attempt, is_repeat, was_held = 0, False, False
        for _ in range(2_000):
            was_held = was_held if is_repeat else held.is_set()
            try:
                answer = client.call(
                    "SubmitTask",
                    headers=(("idempotency-key", f"{ids[0]}-{number}-{attempt}"),),
                    workspace_id=ids[(number + attempt) % WORKSPACES],
                    description="sleep 0.05\ntrue",
                )
            except grpc.RpcError as error:
                slug = grpc_failure(error).slug
                assert slug in ("org_on_hold", "workspace_busy", "unavailable"), error
                if slug == "org_on_hold":
                    return made
                # A call without an answer is repeated, because it may have begun a task.
                is_repeat = slug == "unavailable"
                attempt += not is_repeat
                continue
            attempt, is_repeat = attempt + 1, False
            made.append(answer["task_id"])
            begun.append(answer["task_id"])
            if was_held:
                late.append(answer)
        raise AssertionError("the hold never came")

    def cancel(number: int, client: Grpc) -> int:
        barrier.wait(30)
        count = 0
        while not held.is_set():
            count += accepted("CancelTasks", client, all=True, reason=f"batch {number}") or 0
        return count

    def hold(number: int, client: Grpc) -> int:
        barrier.wait(30)
        try:
            eventually(lambda: len(begun) >= 4 * WORKSPACES, 30)
            while (
                count := accepted("HoldOrg", client, reason="stop", cancel_running=True)
            ) is None:
                pass
            return count
        finally:
            # Ends the other callers even if the hold fails.
            held.set()

    def call(number: int) -> Any:
        act = hold if number == 0 else cancel if number < 10 else submit
        return act(number, callers[number])

    try:
        with ThreadPoolExecutor(CALLERS) as pool:
            results = list(pool.map(call, range(CALLERS)))
        check(stack, ids, results, are_all_counted=not lost)
        assert late == []
    finally:
        stack.rest(CALLER).post("/v1/hold/release", status=200)
        for each in workspaces:
            each.rest.post(f"{each.path}/stop")
        for client in callers:
            client.close()


def check(stack: Stack, ids: list[str], results: list[Any], *, are_all_counted: bool) -> None:
    submitted = {task_id for made in results[10:] for task_id in made}
    with stack.database() as connection:
        since = connection.execute("SELECT held_since FROM org_holds").fetchone()
        assert since is not None

        def open_tasks() -> int:
            rows = connection.execute(_TASKS, (ids,)).fetchall()
            return sum(status in ("submitted", "delivered", "running") for _, _, status, _ in rows)

        # Each task runs at most one more iteration.
        eventually(lambda: open_tasks() == 0, 30)
        rows = connection.execute(_TASKS, (ids,)).fetchall()
        assert {task_id for task_id, *_ in rows} == submitted
        cancelled = {task_id for task_id, _, _, is_cancelled in rows if is_cancelled}
        # Each cancellation was recorded once: by a batch or by the hold.
        count = sum(results[:10])
        assert count == len(cancelled) or (count < len(cancelled) and not are_all_counted)
        for task_id, _, status, is_cancelled in rows:
            assert status == ("cancelled" if is_cancelled else "completed"), task_id
        assert submitted and cancelled
        for workspace_id in ids:
            promised = [(task_id, "a batch") for task_id in cancelled]
            history = read_history(connection, workspace_id)
            mine = [each for each in promised if each[0] in history.tasks]
            assert not (broken := violations(read_history(connection, workspace_id, mine))), broken
