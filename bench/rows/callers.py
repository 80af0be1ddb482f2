"""CancelTask, GetTask and refused calls by 1 to 64 callers, compared with the floor."""

import secrets

from bench import windows
from bench.figures import Row, at_least, at_most, figure, ratio
from bench.plan import Block, Window

_EMPTY, _SELECT, _FLOOR, _DURABLE = "empty", "select", "floor", "durable floor"


def blocks(quick: bool) -> list[Block]:
    """The blocks, with shorter windows for the quick run."""
    return [
        one_caller(0.4 if quick else 1.0),
        four(1.0),
        tree(0.5),
        sixteen(0.5 if quick else 1.5),
        many(64, quick),
    ]


def one_caller(seconds: float) -> Block:
    """The latency of one caller, who does not wait for other callers."""
    return Block(
        name="1 caller",
        windows=[
            Window(_EMPTY, windows.floor_method("Empty", 1, seconds), is_shared=True),
            Window(_SELECT, windows.floor_method("Select", 1, seconds), is_shared=True),
            Window("get_task", windows.get_task(1, seconds)),
            Window(_FLOOR, windows.floor_method("Update", 1, seconds), is_shared=True),
            Window("cancel", windows.cancel(1, seconds)),
            Window(_DURABLE, windows.record(1, seconds), is_shared=True),
        ],
        rows=[
            *_cancel_rows("1 caller"),
            Row(
                name="CancelTask over gRPC ÷ floor over gRPC, 1 caller, p50",
                unit="×",
                value=ratio("p50", "cancel", _FLOOR),
            ),
            Row(
                name="CancelTask over gRPC ÷ durable floor over gRPC, 1 caller, p50",
                unit="×",
                value=ratio("p50", "cancel", _DURABLE),
                target=at_most(1.2),
            ),
            Row(
                name="GetTask over gRPC ÷ empty gRPC call with a select, 1 caller, p50",
                unit="×",
                value=ratio("p50", "get_task", _SELECT),
                target=at_most(1.25),
            ),
            Row(
                name="CPU of the worker ÷ CPU of the durable floor over gRPC, 1 caller",
                unit="×",
                value=ratio("cpu_us", "cancel", _DURABLE),
            ),
            Row(name="empty gRPC call, 1 caller, p50", unit="ms", value=figure("p50", _EMPTY)),
            Row(name="floor over gRPC, 1 caller, p50", unit="ms", value=figure("p50", _FLOOR)),
            Row(
                name="durable floor over gRPC, 1 caller, p50",
                unit="ms",
                value=figure("p50", _DURABLE),
            ),
        ],
        rounds=10,
        quick_rounds=3,
    )


def four(seconds: float) -> Block:
    """Four callers, of whom few wait for other callers.

    A worker records cancellations in groups, and works on two groups at the same time.
    """
    return Block(
        name="4 callers",
        windows=[Window("cancel", windows.cancel(4, seconds))],
        rows=_cancel_rows("4 callers"),
        rounds=4,
        quick_rounds=0,
    )


def tree(seconds: float) -> Block:
    """What the lookup of descendants costs a call whose task has no descendants."""
    return Block(
        name="trees",
        windows=[
            Window("cancel", windows.cancel(1, seconds)),
            Window("tree", windows.cancel(1, seconds, include_descendants=True)),
        ],
        rows=[
            Row(
                name="CancelTask with include_descendants ÷ without, no child, 1 caller, p50",
                unit="×",
                value=ratio("p50", "tree", "cancel"),
            )
        ],
        rounds=6,
        quick_rounds=0,
    )


def sixteen(seconds: float) -> Block:
    """The throughput of 16 callers, including refused calls."""
    unknown_key = f"sk_{secrets.token_urlsafe(32)}"
    return Block(
        name="16 callers",
        windows=[
            Window(_EMPTY, windows.floor_method("Empty", 16, seconds), is_shared=True),
            Window("401", windows.refused(unknown_key, windows.UNAUTHENTICATED, 16, seconds)),
            Window("403", windows.refused("read_only", windows.PERMISSION_DENIED, 16, seconds)),
            Window(_SELECT, windows.floor_method("Select", 16, seconds), is_shared=True),
            Window("404", windows.refused("full_access", windows.NOT_FOUND, 16, seconds)),
            Window("cancel", windows.cancel(16, seconds)),
            Window(_DURABLE, windows.record(16, seconds), is_shared=True),
        ],
        rows=[
            Row(
                name="CancelTask over gRPC ÷ durable floor over gRPC, 16 callers, calls/s",
                unit="×",
                value=ratio("per_second", "cancel", _DURABLE),
                target=at_least(0.85),
            ),
            Row(
                name="CancelTask over gRPC, 16 callers, p99 ÷ p50",
                unit="×",
                value=lambda figures: figures["cancel"]["p99"] / figures["cancel"]["p50"],
                target=at_most(2),
            ),
            _refused_row("401 ÷ empty gRPC call", "401", _EMPTY, 0.55),
            _refused_row("403 ÷ empty gRPC call", "403", _EMPTY, 0.5),
            _refused_row("404 ÷ empty gRPC call with a select", "404", _SELECT, 0.5),
            Row(
                name="CPU of the worker ÷ CPU of the durable floor over gRPC, 16 callers",
                unit="×",
                value=ratio("cpu_us", "cancel", _DURABLE),
                target=at_most(1.35),
            ),
            Row(
                name="CPU of PostgreSQL ÷ CPU of it for the durable floor, 16 callers",
                unit="×",
                value=ratio("postgres_us", "cancel", _DURABLE),
            ),
            *_cancel_rows("16 callers"),
            _calls_row("empty gRPC call, 16 callers", _EMPTY),
            Row(
                name="limit of the load generator: empty gRPC calls in a second of its own CPU",
                unit="calls/s",
                value=figure("generator_per_cpu_second", _EMPTY),
                less_is_better=False,
            ),
        ],
        rounds=6,
        quick_rounds=2,
    )


def many(callers: int, quick: bool) -> Block:
    """The throughput when more callers wait than the service can serve at once."""
    seconds = 0.6 if quick else 2.0
    return Block(
        name=f"{callers} callers",
        windows=[
            Window("cancel", windows.cancel(callers, seconds)),
            Window(_DURABLE, windows.record(callers, seconds), is_shared=True),
        ],
        rows=[
            Row(
                name=f"CancelTask over gRPC ÷ durable floor over gRPC, {callers} callers, calls/s",
                unit="×",
                value=ratio("per_second", "cancel", _DURABLE),
                target=at_least(0.88),
            ),
            *_cancel_rows(f"{callers} callers"),
            _calls_row(f"durable floor over gRPC, {callers} callers", _DURABLE),
        ],
        rounds=6,
        quick_rounds=2,
    )


def _refused_row(name: str, window: str, to: str, limit: float) -> Row:
    return Row(
        name=f"{name}, 16 callers, calls/s",
        unit="×",
        value=ratio("per_second", window, to),
        target=at_least(limit),
    )


def _cancel_rows(callers: str) -> list[Row]:
    """The rows that exist for every number of callers. `docs/scale.md` shows them as charts."""
    return [
        Row(name=f"CancelTask over gRPC, {callers}, p50", unit="ms", value=figure("p50", "cancel")),
        _calls_row(f"CancelTask over gRPC, {callers}", "cancel"),
        Row(
            name=f"CPU of the worker for a CancelTask over gRPC, {callers}",
            unit="µs",
            value=figure("cpu_us", "cancel"),
        ),
        Row(
            name=f"CPU of PostgreSQL for a CancelTask over gRPC, {callers}",
            unit="µs",
            value=figure("postgres_us", "cancel"),
        ),
    ]


def _calls_row(name: str, window: str) -> Row:
    return Row(
        name=f"{name}, throughput",
        unit="calls/s",
        value=figure("per_second", window),
        less_is_better=False,
    )
