"""The spans of an agent: which it records, and that handing them over disturbs nothing."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from evershell.server.agent.shutdown import ExitCode
from evershell.server.agent.span_export import SpanExport
from evershell.server.agent.spans import Spans, new_trace
from evershell.server.core import trace
from evershell.server.core.trace import TraceContext
from tests.agent.conftest import Start, started
from tests.agent.control_plane import ControlPlane
from tests.support.waiting import eventually_async

FIRST, SECOND = (TraceContext(digit * 32, digit * 16) for digit in "ab")
WAIT = "touch begun; while [ ! -e go ]; do sleep 0.01; done"


def test_nested_spans_are_one_tree() -> None:
    times = iter((10, 20, 30, 40))
    spans = Spans(is_on=True, now=lambda: next(times))
    with spans.within("outer", FIRST, number="1") as outer:
        with pytest.raises(ValueError), spans.within("inner", trace.current()):
            raise ValueError("not for spans")
        assert outer is not None and trace.current() == outer.context
    assert trace.current() is None
    (inner, ended), lost = spans.take()
    assert (ended, lost) == (outer, 0)
    assert (inner.context.trace_id, inner.parent_span_id) == (FIRST.trace_id, ended.context.span_id)
    assert ended.parent_span_id == FIRST.span_id
    assert (inner.began_at, inner.ended_at, ended.ended_at) == (20, 30, 40)
    assert (inner.has_failed, ended.has_failed) == (True, False)
    assert ended.attributes == {"evershell.number": "1"}
    assert spans.take() == ([], 0)


@pytest.mark.parametrize(
    ("is_on", "parent"),
    [(False, FIRST), (True, None), (True, TraceContext("c" * 32, "d" * 16, "00"))],
)
def test_nothing_is_recorded_outside_of_a_sampled_trace(
    is_on: bool, parent: TraceContext | None
) -> None:
    spans = Spans(is_on=is_on)
    with spans.within("call", parent) as span:
        assert span is None and trace.current() is None
    assert spans.take() == ([], 0)


def test_the_oldest_spans_are_lost_when_too_many_wait() -> None:
    spans = Spans(is_on=True, kept=2)
    for name in "abcde":
        with spans.within(name, FIRST):
            pass
    kept, lost = spans.take()
    assert ([span.name for span in kept], lost) == (["d", "e"], 3)


def test_a_clock_that_is_set_back_does_not_end_a_span_before_it_began() -> None:
    times = iter((20, 10))
    spans = Spans(is_on=True, now=lambda: next(times))
    with spans.within("call", FIRST):
        pass
    ((span,), _) = spans.take()
    assert (span.began_at, span.ended_at) == (20, 20)


class Log:
    def __init__(self) -> None:
        self.warnings: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.warnings.append({"event": event, **fields})

    info = error = exception = warning


async def test_lost_spans_cause_one_warning_a_minute() -> None:
    log, now, spans = Log(), [0.0], Spans(is_on=True)

    async def refuse(_: object) -> None:
        raise OSError("down")

    export = SpanExport(spans, refuse, log, monotonic=lambda: now[0])
    for now[0] in (0.0, 1.0, 59.0, 61.0):
        with spans.within("call", FIRST):
            pass
        await export.close()
    warning = {"event": "spans_lost", "reason": "OSError('down')"}
    assert log.warnings == [warning | {"count": 1}, warning | {"count": 3}]


async def test_the_last_export_has_a_time_limit() -> None:
    spans, begun = Spans(is_on=True), asyncio.Event()

    async def hang(_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    with spans.within("call", FIRST):
        pass
    async with asyncio.timeout(30):
        await SpanExport(spans, hang, Log()).close()
    assert begun.is_set()


async def test_the_spans_of_a_cancelled_task_are_trees_below_the_signals(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    await started(control_plane, start, export_spans=True)
    agent = control_plane.agent()
    assignment = control_plane.submit("t1", f"true\n{WAIT}\necho secret")
    await control_plane.start_task(agent, assignment, traceparent=FIRST.traceparent)
    await eventually_async((tmp_path / "begun").exists)
    await control_plane.cancel_task(agent, "t1", traceparent=SECOND.traceparent)
    (tmp_path / "go").touch()
    await control_plane.until(lambda: {"cancellation"} <= {s.name for s in control_plane.spans})

    def tree(trace_id: str, parent: str) -> list[Any]:
        found = [
            span
            for span in control_plane.spans
            if (span.trace_id, span.parent_span_id) == (trace_id, parent)
        ]
        found.sort(key=lambda span: span.start_unix_nanos)
        return [(span.name, *tree(trace_id, span.span_id)) for span in found]

    iteration = ("iteration", ("model_call",), ("tool_call",))
    assert tree(FIRST.trace_id, FIRST.span_id) == [("commit",), iteration, ("commit",), iteration]
    assert tree(SECOND.trace_id, SECOND.span_id) == [("cancellation", ("commit",))]
    # Each commit continues the trace at its own span.
    commits = [span for span in control_plane.spans if span.name == "commit"]
    commits.sort(key=lambda span: span.start_unix_nanos)
    assert [parent for _, parent in control_plane.traces] == [
        f"00-{span.trace_id}-{span.span_id}-01" for span in (*commits, commits[-1])
    ]
    (registration,) = [span for span in control_plane.spans if span.name == "register"]
    assert control_plane.registration.split("-")[1:3] == [
        registration.trace_id,
        registration.span_id,
    ]
    assert registration.parent_span_id == ""
    assert "secret" not in str(control_plane.spans)


async def test_without_the_setting_nothing_is_exported(
    control_plane: ControlPlane, start: Start
) -> None:
    agent = await started(control_plane, start)
    task = control_plane.submit("t1", "true")
    await control_plane.start_task(control_plane.agent(), task, traceparent=FIRST.traceparent)
    await control_plane.until(lambda: control_plane.end("t1"))
    # The parent is the signal itself.
    assert {parent for _, parent in control_plane.traces} == {FIRST.traceparent}
    assert control_plane.registration == ""
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(agent, 30) is ExitCode.STOPPED
    assert "ExportSpans" not in control_plane.calls


async def test_an_export_that_hangs_delays_no_iteration_and_no_cancellation(
    control_plane: ControlPlane, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evershell.server.agent.agent.SpanExport", _at_once)
    released = asyncio.Event()

    async def hang(call: str) -> None:
        if call == "ExportSpans":
            await released.wait()

    control_plane.before_reply = hang
    agent = await started(control_plane, start, export_spans=True)
    await control_plane.until(lambda: "ExportSpans" in control_plane.calls)
    stub = control_plane.agent()
    task = control_plane.submit("t1", f"true\ntrue\n{WAIT}\necho never")
    await control_plane.start_task(stub, task, traceparent=FIRST.traceparent)
    await eventually_async((tmp_path / "begun").exists)
    await control_plane.cancel_task(stub, "t1", traceparent=SECOND.traceparent)
    (tmp_path / "go").touch()
    await control_plane.until(lambda: control_plane.end("t1"))
    assert len(control_plane.iterations("t1")) == 3
    assert control_plane.spans == []
    # The agent ends although the call hangs.
    control_plane.fenced = True
    assert await asyncio.wait_for(agent, 30) is ExitCode.FENCED
    released.set()


def _at_once(*arguments: Any) -> SpanExport:
    return SpanExport(*arguments, gather_seconds=0.0)


async def test_a_control_plane_that_takes_no_spans_is_served_as_before(
    control_plane: ControlPlane, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evershell.server.agent.agent.SpanExport", _at_once)

    async def refuse(self: ControlPlane, request: Any, context: Any) -> None:
        self.calls.append("ExportSpans")
        self._changed.set()
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "an earlier version")

    monkeypatch.setattr(ControlPlane, "ExportSpans", refuse)
    await started(control_plane, start, export_spans=True)
    await control_plane.until(lambda: "ExportSpans" in control_plane.calls)
    task = control_plane.submit("t1", "true")
    await control_plane.start_task(control_plane.agent(), task, traceparent=FIRST.traceparent)
    await control_plane.until(lambda: control_plane.end("t1"))


def test_a_new_trace_has_no_first_span_yet() -> None:
    spans = Spans(is_on=True)
    with spans.within("register", new_trace()):
        pass
    ((span,), _) = spans.take()
    assert span.parent_span_id == "" and len(span.context.trace_id) == 32
