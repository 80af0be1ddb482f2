"""Writes docs/shares.md: what callers share, and how much of it each of them may hold.

Reads the limits from the code that enforces them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evershell.api.interceptors import auditing, reading
from evershell.api.interceptors.shares import RETRY_SECONDS, SHARES, Kind
from evershell.app.pod_backends import TOOL_PROCESSES
from evershell.app.settings import Settings
from evershell.core import agent_rules
from evershell.features.webhooks import deliverer, deliveries, sender
from evershell.fleet import due, work
from evershell.pod import sandbox
from evershell.stack.envoy import config
from evershell.stack.up import LOG_MAX_BYTES
from evershell.store import (
    cancellations,
    events,
    pool,
    scans,
    watched_workspaces,
)
from evershell.store.session_settings import SETTINGS
from evershell.telemetry import metrics_server

ROOT = Path(__file__).resolve().parents[1]
_EDGE = ROOT / "envoy" / "evershell" / "edge"
# Nothing bounds what one caller takes, except what the row says.
_NONE = "-"
# The shares that its calls have in a worker.
_CALLS = "by its calls"
_REFUSED = f"429, after {RETRY_SECONDS} s"
_SHARES = "tests/wire/api/test_shares.py::test_a_credential_and_an_organization_have_a_share"
_READING = "tests/wire/api/test_reading.py::"
_EDGE_SHARES = "tests/wire/edge/test_shares.py::"
_OVERLOAD = "tests/wire/edge/long/test_overload.py::"
_BUSIEST = {
    Kind.FIRST: "64 callers (bench)",
    Kind.READS: "11 (A2A client that polls 15 workspaces)",
    Kind.STREAMS: "1,000 watchers (bench)",
    Kind.WAITS: "one for each busy workspace (A2A client: 15 for 15)",
    Kind.OTHERS: "64 callers (bench)",
    Kind.FIRST_BODIES: "0: they arrive within 100 ms",
    Kind.BODIES: "3 (A2A client, 20 kB)",
}
_TITLES = (
    "what",
    "how much",
    "a credential",
    "an organization",
    "an address or agent",
    "the next one gets",
    "busiest",
    "test",
)
_HEAD = """\
# Shares

<!-- Written by `make gen` from where the limits are enforced. Do not edit. -->

What callers share, and how much of it one of them may hold **at a time**. A worker refuses a call
beyond a share at once. A refusal says when to repeat the call, unless the call is a CancelTask
without a task id. Each worker counts separately. Cancellations, stops, holds, and reads of one task
(GetTask) have their own places, which no other call can use. In addition, each credential has
[limits on its rate of calls](configuration.md#rate-limits).

- `-`, or no column: nothing bounds what one of them takes, except what the row says.
- by its calls: the shares of its calls in a [worker](#a-worker) bound it.
- not needed: anybody may call, without a credential.
- 429: `rate_limited`; 503: `unavailable`.
- busiest: the most that a well-behaved credential is known to use of one worker.
"""


@dataclass(frozen=True)
class Row:
    """A row of the table: something that callers share."""

    thing: str
    total: str
    credential: str = _NONE
    organization: str = _NONE
    # How much one address or one agent may hold.
    other: str = ""
    next_one: str = ""
    busiest: str = ""
    # The tests as path::name, separated by spaces.
    tests: str = ""


def page() -> str:
    """The page: a table for each part of the service."""
    parts = [_HEAD]
    for title, rows in (
        ("The edge", _edge()),
        ("A worker", _worker()),
        ("The database", _database()),
        ("The fleet controller", _fleet()),
        ("Webhooks", _webhooks()),
        ("Logs", _logs()),
        ("Agents", _agents()),
    ):
        parts.append(f"\n## {title}\n\n{_table(rows)}")
    return "".join(parts)


def _table(rows: Iterator[Row]) -> str:
    """A table with the columns that say something in one of its rows."""
    lines = [_TITLES, *map(_cells, rows)]
    columns = [
        number
        for number in range(len(_TITLES))
        if {line[number] for line in lines[1:]} - {"", _NONE}
    ]
    shown = [[line[number] for number in columns] for line in lines]
    shown.insert(1, ["---"] * len(columns))
    return "".join(f"| {' | '.join(line)} |\n" for line in shown)


def _cells(row: Row) -> Sequence[str]:
    cells = (row.total, row.credential, row.organization, row.other, row.next_one, row.busiest)
    return (row.thing, *cells, ", ".join(_link(test) for test in row.tests.split()))


def _link(test: str) -> str:
    path, _, name = test.partition("::")
    if f"def {name}(" not in (ROOT / path).read_text():
        raise ValueError(f"docs/shares.md names a test that does not exist: {test}")
    return f"[{Path(path).stem.removeprefix('test_').replace('_', ' ')}](../{path}#{name})"


def _edge() -> Iterator[Row]:
    text = (_EDGE / "envoy.yaml").read_text()
    rest, grpc = re.findall(r"max_concurrent_streams: (\d+)\n +initial_stream_window", text)[:2]
    limits = re.findall(r"priority: (\w+), .*?max_requests: (\d+)", text)
    first, small, long, large, reflection, health = (f"{int(limit):,}" for _, limit in limits)
    buffer = _number(r"per_connection_buffer_limit_bytes: (\d+)", text) // 1024
    headers = _number(r"max_request_headers_kb: (\d+)", text)
    count = _number(r"max_headers_count: (\d+)", text)
    yield Row(
        "connections",
        f"{config.MAX_CONNECTIONS:,}",
        next_one="is closed; from 70 % on, idle ones are closed sooner",
        tests=_OVERLOAD + "test_idle_connections_are_closed_before_the_limit_is_reached",
    )
    yield Row(
        "calls of one connection",
        f"{rest} over REST, {int(grpc):,} over gRPC",
        other="all of its connections",
        next_one="waits in the client",
        tests=_EDGE_SHARES + "test_a_connection_has_as_many_calls_as_it_may_and_others_cancel",
    )
    unavailable = "503"
    agrees = "tests/wire/api/test_shares.py::test_the_edge_has_the_same_classes"
    for thing, limit, test in (
        ("cancellations, stops, holds, reads of one task", first, agrees),
        ("other calls with a small body", small, agrees),
        ("streams, and calls that wait for the end of a task", long, agrees),
        (
            "calls with a large body, or one of unknown size",
            large,
            _OVERLOAD + "test_large_bodies_are_limited_and_other_calls_succeed",
        ),
    ):
        yield Row(thing, limit, _CALLS, _CALLS, next_one=unavailable, tests=test)
    strangers = _EDGE_SHARES + "test_strangers_hold_all_places_of_a_method_without_a_credential"
    for thing, limit, other, refused, tests in (
        ("reflection", reflection, "each call for 5 s at most", unavailable, strangers),
        (
            "health over gRPC",
            health,
            "each call from the end of its message, for 5 s at most",
            f"{unavailable}; `/healthz` has no such limit",
            f"{strangers} {_EDGE_SHARES}test_strangers_that_send_nothing_hold_no_place_of_health",
        ),
    ):
        yield Row(thing, limit, "not needed", _NONE, other, refused, tests=tests)
    yield Row(
        "headers of a call",
        f"{headers} KiB, {count} headers",
        other="of each call",
        next_one="431 `headers_too_large`",
        tests="tests/wire/edge/test_cases.py::test_a_request_gets_the_expected_answer",
    )
    yield Row(
        "buffers",
        f"{config._HEAP_SHARE:.0%} of `PROGRAM_MEMORY_MB`",
        other=f"{buffer} KiB a connection, in addition to the body that is translated",
        next_one="the largest are reset, then 503",
        tests=_OVERLOAD + "test_answers_that_nobody_reads_are_given_up_when_memory_runs_out",
    )
    yield Row(
        "connections to a worker",
        "one for each class and thread",
        "shared",
        "shared",
        next_one="shares them",
        tests=_EDGE_SHARES + "test_a_connection_has_as_many_calls_as_it_may_and_others_cancel",
    )

    yield Row(
        "connections of the metrics port",
        str(_number(r"listener\.metrics\.connection_limit: (\d+)", text)),
        "not needed",
        _NONE,
        "a silent one for 10 s at most",
        "is closed",
        tests="tests/wire/edge/test_metrics.py::test_silent_connections_are_few_and_callers_cancel",
    )


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, pattern
    return int(match[1])


def _worker() -> Iterator[Row]:
    for kind, share in SHARES.items():
        is_body = kind in (Kind.FIRST_BODIES, Kind.BODIES)
        yield Row(
            kind.value,
            f"{share.total:,}",
            f"{share.credential:,}",
            f"{share.organization:,}",
            next_one=_REFUSED,
            busiest=_BUSIEST[kind],
            tests=_READING + "test_slow_requests_beyond_a_share_are_refused_at_once"
            if is_body
            else _SHARES,
        )
    yield Row(
        "requests of agents that are being read",
        f"{reading._AGENTS_BYTES >> 20} MiB; each request counts as its method's size limit",
        "",
        "",
        f"1, and {agent_rules.MAX_WAITING_CALLS} that wait; "
        f"{agent_rules.BYTES_PER_SECOND >> 20} MiB/s",
        "waits; 429 if too many already wait",
        tests=_READING + "test_an_agent_is_served_one_call_at_a_time_and_few_wait",
    )
    yield Row(
        "memory of a stream",
        f"2 batches of {events.MAX_BATCH_BYTES >> 10} KiB, or 2 events",
        _CALLS,
        _CALLS,
        next_one="a stream that is not read waits",
        tests="tests/unit/core/test_event_feeds.py::test_a_slow_watcher_reads_what_it_has_missed_and_delays_nobody",
    )
    yield Row(
        "subscriptions",
        "one for each watched workspace and waiting call; "
        f"{watched_workspaces._MAX_BATCH} begin with a statement, over one connection",
        _CALLS,
        _CALLS,
        next_one=f"waits {watched_workspaces._MARK_LIMIT_SECONDS:g} s at most, after its "
        "cancellation is recorded, then looks for changes every 5 s until it has begun",
        tests="tests/unit/store/test_notifications.py::"
        "test_many_subscriptions_wait_with_one_connection_and_delay_no_cancellation",
    )
    yield Row(
        "group commits",
        f"{cancellations._AT_ONCE} at once, of {cancellations._MAX_BATCH} cancellations",
        _CALLS,
        _CALLS,
        next_one="waits for the next group",
        tests="tests/unit/store/test_batch.py::test_the_number_of_statements_in_flight_is_limited",
    )
    yield Row(
        "connections of the metrics port",
        f"{metrics_server._MAX_CONNECTIONS}, of each program",
        "not needed",
        _NONE,
        f"each read and write for {metrics_server._TIMEOUT_SECONDS:g} s at most",
        "closes the oldest silent one; waits if all are served",
        tests="tests/unit/test_metrics_server.py::"
        "test_silent_connections_keep_no_threads_and_nobody_out",
    )


def _database() -> Iterator[Row]:
    size = Settings.model_fields["pool_size"].default
    sizes = pool.Sizes.of(size)
    unavailable = "503"
    waits = f"waits {pool.ACQUIRE_TIMEOUT_SECONDS:g} s, then {unavailable}"
    in_pool = "tests/unit/store/test_pool.py::"
    leaves = in_pool + "test_every_share_leaves_connections_for_cancellations"
    yield Row(
        "connections of a worker (`POOL_SIZE`)",
        f"{size}",
        _CALLS,
        _CALLS,
        next_one=waits,
        tests=in_pool + "test_no_cancellation_waits_for_lists",
    )
    yield Row(
        "of these, for all but cancellations, holds, reads of one task and credentials",
        f"{sizes.others}",
        _CALLS,
        _CALLS,
        next_one=waits,
        tests=leaves,
    )
    yield Row(
        "of these, for lists",
        f"{sizes.lists}",
        _CALLS,
        f"{_CALLS}; organizations take turns",
        next_one=f"waits {pool._LIST_WAIT_SECONDS:g} s, then {_REFUSED}; after a list, its "
        f"place stays taken for as long as the list took, {pool._LIST_PAUSE_SECONDS:g} s at most",
        tests=f"{in_pool}test_no_cancellation_waits_for_lists "
        f"{in_pool}test_lists_leave_the_database_to_others_half_of_the_time "
        f"{in_pool}test_organizations_take_turns_in_lists",
    )
    locks = (
        "tests/unit/store/test_cancellations.py::"
        "test_many_requests_for_locked_workspaces_leave_connections_to_others"
    )
    for thing, number, test in (
        ("submissions into trees, of those for all but cancellations", sizes.trees, leaves),
        ("cancellations that wait for a lock", sizes.locks, locks),
        ("cancellations of many tasks, of those that wait for a lock", sizes.bulk, leaves),
    ):
        yield Row(
            f"connections for {thing}",
            f"{number}",
            _CALLS,
            _CALLS,
            next_one=f"waits {pool.ANSWER_TIMEOUT_SECONDS:g} s, then {unavailable}",
            tests=test,
        )
    yield Row(
        "rows that a page of a list reads",
        f"{scans.MAX_ROWS:,}",
        other="of each page",
        next_one="the page is short, and has a token",
        tests="tests/unit/store/test_scans.py::test_a_page_reads_a_bounded_number_of_rows",
    )
    yield Row(
        "time of a statement",
        f"{pool.ANSWER_TIMEOUT_SECONDS:g} s, of a list "
        f"{pool.LIST_TIMEOUT_SECONDS:g} s; the server ends it after "
        f"{SETTINGS['statement_timeout']}",
        other="of each statement",
        next_one=unavailable,
        tests=f"{in_pool}test_statements_that_do_not_end_are_ended_and_no_cancellation_waits "
        f"{in_pool}test_no_cancellation_waits_for_lists",
    )
    yield Row(
        "temporary files",
        "lists write none: the rows of a page fit into `work_mem` (4 MB)",
        tests="tests/unit/store/test_scans.py::test_no_list_writes_temporary_files",
    )


def _fleet() -> Iterator[Row]:
    yield Row(
        "signals of cancellations",
        f"{work.SIGNALS} at once",
        next_one="waits",
        tests="tests/unit/fleet/test_redelivery.py::"
        "test_a_bounded_number_of_agents_is_signalled_at_once",
    )
    controlled = "tests/unit/fleet/test_controller.py::"
    yield Row(
        "limits that are reached, cancelled tasks of workspaces that wake",
        f"{work.FEW} at once of each kind",
        next_one="waits; one whose workspace is locked for the next scan",
        tests=controlled
        + "test_few_limits_are_applied_at_once_and_a_locked_workspace_delays_no_other",
    )
    yield Row(
        "steps of workspaces: starts, stops, ends of agents that are lost or overdue",
        f"{work.STEPS} at once of each kind, one for each workspace",
        next_one="waits",
        tests=controlled + "test_many_pods_that_end_slowly_do_not_delay_those_of_others",
    )
    yield Row(
        "removals of workspaces",
        f"{work.FEW} at once",
        next_one="waits",
        tests=controlled + "test_few_workspaces_are_removed_at_once_and_the_pods_of_others_end",
    )
    yield Row(
        "work of a kind that is done or waits for its share",
        f"{due.PAGE_SIZE}, {work.STEPS:,} steps",
        next_one="is read by a later scan",
        tests="tests/unit/fleet/test_due.py::test_rows_that_stay_due_hide_no_others "
        "tests/unit/fleet/long/test_starvation.py::test_many_of_a_kind_delay_no_other",
    )


def _webhooks() -> Iterator[Row]:
    yield Row(
        "receivers to which events are sent",
        _NONE,
        organization=f"{deliveries.MAX_RECEIVERS_OF_ORG}",
        other=f"{deliverer._AT_ONCE} requests at once to a receiver",
        next_one="waits",
        tests="tests/unit/webhooks/test_deliverer.py::"
        "test_thousands_of_receivers_that_are_down_delay_no_other",
    )
    yield Row(
        "sockets",
        "the system's limit of files",
        organization=f"{deliveries.MAX_RECEIVERS_OF_ORG * deliverer._AT_ONCE}",
        other=f"a request takes {sender.ATTEMPT_SECONDS:g} s at most",
        tests="tests/unit/webhooks/test_deliverer.py::test_a_slow_receiver_delays_no_other",
    )
    yield Row(
        "threads for DNS",
        f"{sender._DNS_THREADS}",
        organization=f"about {2 * deliveries.MAX_RECEIVERS_OF_ORG}, each for seconds",
        next_one=f"waits {sender._CONNECT_SECONDS:g} s, then the attempt has failed",
        tests="tests/unit/webhooks/test_deliverer.py::"
        "test_names_that_nobody_resolves_leave_threads_to_other_organizations "
        "tests/unit/webhooks/test_sender.py::"
        "test_without_a_thread_for_a_name_an_attempt_fails_and_addresses_are_called "
        "tests/unit/webhooks/long/test_names.py::test_the_process_gives_up_sooner_than_others",
    )


def _logs() -> Iterator[Row]:
    rate = _number(r"max_tokens: (\d+)", (_EDGE / "unsolicited_calls.yaml").read_text())
    size = LOG_MAX_BYTES >> 20
    log = "tests/wire/edge/test_access_log.py::"
    yield Row(
        "lines of the edge for calls without a credential",
        f"{rate} a second",
        "not needed",
        _NONE,
        next_one="has no line",
        tests=log + "test_calls_without_a_credential_do_not_fill_the_log",
    )
    yield Row(
        "lines for calls that a worker has served",
        "one a call",
        "its rate of calls",
        tests=log + "test_every_answer_of_a_worker_is_logged",
    )
    yield Row(
        "entries of the audit log for calls without a credential",
        f"{auditing._UNAUTHENTICATED_PER_SECOND} a second",
        "not needed",
        _NONE,
        next_one="is counted",
        tests="tests/wire/api/test_auditing.py::"
        "test_a_flood_of_unauthenticated_calls_leaves_few_entries",
    )
    yield Row(
        "files",
        f"rotated at {size} MiB",
        next_one="replaces the oldest",
        tests="tests/unit/stack/test_log_files.py::test_a_log_has_at_most_so_many_files",
    )


def _agents() -> Iterator[Row]:
    memory_mb = Settings.model_fields["tool_memory_mb"].default
    attack = "tests/faults/long/attacks/test_sandbox.py::test_an_attack_is_refused"
    yield Row(
        "processes of a tool call",
        _NONE,
        other=f"{TOOL_PROCESSES} a tool call",
        next_one="cannot be started",
        tests=attack,
    )
    yield Row(
        "memory of a tool call",
        "the machine's",
        other=f"{memory_mb:,} MiB a tool call (`TOOL_MEMORY_MB`)",
        next_one="is killed",
        tests=attack,
    )
    yield Row(
        "open files",
        "the machine's",
        other=f"{sandbox.MAX_FILES:,} a process of a tool call",
        next_one="cannot be opened",
        tests="tests/unit/fleet/test_isolation.py::"
        "test_a_process_of_a_tool_call_has_a_limit_of_open_files",
    )
    yield Row(
        "network",
        "the machine's",
        other="tools have none, unless `TOOL_NETWORK` is `host`; agents share it",
        next_one="cannot be reached",
        tests=attack,
    )
