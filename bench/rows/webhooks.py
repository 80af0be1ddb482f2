"""How much a webhook slows calls, and how much a hanging receiver delays other receivers."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from bench import load, processes, windows
from bench.figures import Figures, Row, at_least, at_most, percentile, ratio
from bench.plan import Block, Measure, Setting, Window
from bench.servers.agent import AGENTS
from bench.side import Side
from tests.support.waiting import eventually

_EVENT = "task_cancel_requested"
# The time limit for the deliveries after the last call of a window, and for each paced call.
_LIMIT_SECONDS = 60.0
# The windows that measure delays make one call in each _PACE_SECONDS. At this pace, no delivery
# waits for another delivery.
_PACED_CALLS = 400
_PACE_SECONDS = 0.01


def blocks(quick: bool) -> list[Block]:
    """One block."""
    return [
        Block(
            name="webhooks",
            windows=[
                Window("without", windows.cancel(1, 1.0)),
                Window("with", _with_webhook(windows.cancel(1, 1.0))),
                Window("without, 16", windows.cancel(16, 1.5)),
                Window("with, 16", _with_webhook(windows.cancel(16, 1.5))),
                Window("alone", _delivered()),
                Window("beside", _delivered("hang")),
            ],
            rows=[
                Row(
                    name="CancelTask over gRPC with a webhook ÷ without, 1 caller, p50",
                    unit="×",
                    value=ratio("p50", "with", "without"),
                    target=at_most(1.1),
                ),
                Row(
                    name="CancelTask over gRPC with a webhook ÷ without, 16 callers, calls/s",
                    unit="×",
                    value=ratio("per_second", "with, 16", "without, 16"),
                    target=at_least(0.97),
                ),
                Row(
                    name="commit of an event → its webhook, beside a receiver that hangs ÷ alone, "
                    "p99",
                    unit="×",
                    value=ratio("p99", "beside", "alone"),
                    target=at_most(1.2),
                ),
                Row(
                    name="commit of an event → its webhook, p50",
                    unit="ms",
                    value=lambda figures: figures["alone"]["p50"],
                ),
                Row(
                    name="commit of an event → its webhook, p99",
                    unit="ms",
                    value=lambda figures: figures["alone"]["p99"],
                ),
            ],
            rounds=7,
            quick_rounds=0,
            skipped_because=_skipped_because,
        )
    ]


def _skipped_because(setting: Setting) -> str:
    proto = "protos/evershell/workspace/v1/webhook.proto"
    if all((side.checkout / proto).exists() for side in setting.sides):
        return ""
    return "a side has no webhooks"


def _with_webhook(measured: Measure) -> Measure:
    """Measures a window whose cancellations go to a webhook, and waits for all deliveries."""

    def measure(setting: Setting, side: Side) -> Figures:
        with _receiver(setting, side, "accept") as log:
            _warm_up(setting, side, log)
            figures = measured(setting, side)
            # One delivery is from `_warm_up`. The window also makes one call for each agent, which
            # `calls` does not count.
            _await(log, 1 + AGENTS + int(figures["calls"]))
        return figures

    return measure


def _delivered(*others: str) -> Measure:
    """The time from an event to its delivery. `others` has the behaviour of other receivers."""

    def measure(setting: Setting, side: Side) -> Figures:
        tasks = side.arm(_PACED_CALLS, setting.agent_address)
        bodies = [windows.cancel_body(workspace_id) for workspace_id in tasks.workspace_ids]
        with ExitStack() as stack:
            for other in others:
                stack.enter_context(_receiver(setting, side, other))
            log = stack.enter_context(_receiver(setting, side, "accept"))
            _warm_up(setting, side, log)
            _call_at_a_pace(side, bodies)
            delays = [_delay_ms(line) for line in _await(log, 1 + _PACED_CALLS)[1:]]
        return {"p50": percentile(delays, 50), "p99": percentile(delays, 99)}

    return measure


def _warm_up(setting: Setting, side: Side, log: Path) -> None:
    """Delivers one event first: the first webhook starts the process that delivers."""
    (workspace_id,) = side.arm(1, setting.agent_address).workspace_ids
    _call_at_a_pace(side, [windows.cancel_body(workspace_id)])
    _await(log, 1)


def _call_at_a_pace(side: Side, bodies: list[bytes]) -> None:
    connection = side.connect("CancelTask")
    began = time.monotonic()
    try:
        for number, body in enumerate(bodies):
            time.sleep(max(0.0, began + number * _PACE_SECONDS - time.monotonic()))
            windows.expect(load.run([connection], [body], 1, _LIMIT_SECONDS), windows.OK)
    finally:
        connection.close()


@contextmanager
def _receiver(setting: Setting, side: Side, behaviour: str) -> Iterator[Path]:
    """Runs a receiver, and keeps a webhook to it, inside the block. Yields the receiver's log."""
    port = processes.free_port()
    log = setting.folder / f"receiver-{port}-{time.monotonic_ns()}.log"
    rest = side.stack.rest()
    with processes.running("bench.servers.receiver", port, behaviour, log=log):
        body = {"url": f"http://127.0.0.1:{port}/", "event_types": [_EVENT]}
        webhook_id = rest.post("/v1/webhooks", body, 201)["webhook"]["id"]
        try:
            yield log
        finally:
            rest.call("DELETE", f"/v1/webhooks/{webhook_id}").raise_for_status()


def _await(log: Path, count: int) -> list[str]:
    """Waits for `count` deliveries. Returns their lines in the receiver's log."""
    eventually(lambda: log.read_bytes().count(b"\n") >= count, _LIMIT_SECONDS)
    return log.read_text().splitlines()


def _delay_ms(line: str) -> float:
    """The time from the event to its delivery, in milliseconds."""
    arrived_at, _, body = line.partition(" ")
    happened_at = datetime.fromisoformat(json.loads(body)["time"]).timestamp()
    return (float(arrived_at) - happened_at) * 1_000
