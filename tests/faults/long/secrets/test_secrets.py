"""After calls of every kind, and faults, credentials are only in the places that may hold them.

MAY_HOLD says which places may hold which credentials of the stack. All other places are searched
for each credential, whole, in part and encoded, and for anything that looks like a credential.
"""

import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from evershell.auth.pod_tokens import PodTokens
from evershell.pod.tokens import minute_of, signal_token
from evershell.stack import postgres
from tests.faults.long.secrets import evidence
from tests.faults.long.secrets.calls import Calls, new_key
from tests.support import faults
from tests.support.constants import crash_points_in
from tests.support.model_server import Answer, ModelServer, model_server, says
from tests.support.model_server import calls as model_calls
from tests.support.otlp import Receiver
from tests.support.ports import free_ports
from tests.support.secrets import HOLDERS, Secret, Secrets, issued
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

WORKERS = 2
# Patterns of the places that may hold credentials, and of the names of these credentials.
MAY_HOLD = (
    (r"file state/ready\.json", r"demo .*|the password of the database"),
    (r"file state/demo\.env", r"demo full_access"),
    (r"file state/demo\.json", r"demo (full_access|submit_observe|read_only)|.* demo's sessions"),
    (r"file state/control-plane\.jwk", r"the signing key|a private JWK"),
    # The settings of the service.
    (r"environ of evershell\.commands (up|serve|fleet)", r"the password of the database"),
    (r"environ of evershell\.commands (up|fleet)", r"the model's key"),
    (r"environ of (evershell\.commands (up|serve|fleet)|envoy|sh)", r"the collector's key"),
    # Callers may write a credential into their own texts.
    (r"table (tasks|events|audit_entries\w*|workspaces)", r"a key written .*"),
    (r"table idempotency_keys", r"a key written (as a name|as an idempotency key)"),
    (r"answer", r"a key written .*"),
)


def may_hold(place: str, name: str) -> bool:
    return any(re.fullmatch(where, place) and re.fullmatch(what, name) for where, what in MAY_HOLD)


def assert_none(found: Iterable[tuple[str, bytes]], secrets: Secrets) -> None:
    """Fails for each credential in a place that may not hold it."""
    leaks = sorted(
        {
            f"{place}: {name}"
            for place, data in found
            for name in secrets.found(data)
            if not may_hold(place, name)
        }
    )
    assert not leaks, "\n".join(["credentials in places that are not meant for them:", *leaks])


def work_and_crash(stack: Stack, model: ModelServer, points: Path) -> None:
    """Ends tasks in every way, and makes an agent and a worker crash."""
    workspace = Workspace(stack)

    def run(*script: Answer) -> str:
        model.script.clear()
        model.script.extend(script)
        return workspace.submit("look around")

    look = model_calls("env; cat /proc/*/environ /proc/*/cmdline; ls -la /; env > seen")
    assert workspace.await_end(run(look, says("done")))["status"] == "completed"
    assert workspace.await_end(run(Answer(b"{}", status=401)))["status"] == "failed"
    gate = Gate(workspace)
    for fields in ({"force_after": timedelta(0)}, {"wait": timedelta(seconds=1)}):
        task_id = run(model_calls(gate.command), says("never asked for"))
        workspace.await_phase(task_id, "tool_call")
        (points / "after_intent").touch()
        # The worker that records the intent is killed, and the supervisor starts another worker.
        faults.cancel(workspace, "rest")
        eventually(lambda: faults.cancel(workspace, "grpc", **fields) == "already_requested", 60)
        if "wait" in fields:
            gate.open()
        assert faults.await_terminal(workspace, task_id)["status"] == "cancelled"
    task_id = run(model_calls("sleep 60"), says("never asked for"))
    workspace.await_phase(task_id, "tool_call")
    stack.kill(stack.agent_pid(workspace.id))
    assert faults.await_terminal(workspace, task_id, 30)["status"] == "failed"
    stack.replace_controllers()
    faults.resume(workspace)
    model.script.extend((says("done"),))
    model.script.popleft()


def agents_secrets(stack: Stack) -> Iterator[Secret]:
    """Yields the secrets and tokens that the control plane and its agents have used."""
    tokens = PodTokens((stack.state_dir / "control-plane.jwk").read_text())
    with stack.database() as connection:
        rows = connection.execute("SELECT id, epoch FROM workspaces").fetchall()
    for workspace_id, last in rows:
        for epoch in range(1, last + 1):
            for kind, secret in (
                ("runtime", tokens.runtime_secret(workspace_id, epoch)),
                ("signal", tokens.signal_secret(workspace_id, epoch)),
            ):
                yield Secret(f"a {kind} secret", secret.hex())
                # Tokens of both kinds contain a code that changes every minute. The run took less
                # than 10 minutes.
                for minute in range(-10, 2):
                    code = signal_token(secret, minute_of(time.time()) + minute)
                    yield Secret(f"a {kind} token", code)


def assert_whole(places: Iterable[str]) -> None:
    """Checks that the search included everything that a stack leaves."""
    for wanted in (
        r"file state\.output",
        r"file state/logs/worker-[01]\.log",
        r"file state/logs/fleet-[01]\.log",
        r"file state/logs/envoy\.log",
        r"file state/fleet/ws_\w+/log",
        r"file state/pods/ws_\w+/.*",
        r"table audit_entries\w*",
        r"table events",
        r"table pg_stat_activity",
        r"metrics 2",
        r"envoy config_dump",
        r"cmdline of evershell\.agents",
        r"environ of evershell\.agents",
        r"environ of (bwrap|sh|sleep)",
        r"environ of envoy",
        r"span",
        r"answer",
    ):
        assert any(re.fullmatch(wanted, place) for place in places), (wanted, set(places))


# At the end of every stack, tests/support/secrets.py does a shorter version of this search.
@pytest.mark.soak
@pytest.mark.timeout(240)
def test_no_credential_is_where_it_is_not_meant_to_be(
    tmp_path: Path, empty_database_url: str
) -> None:
    password, model_key, collector_key = new_key(), new_key(), new_key()
    receiver = Receiver()
    (tmp_path / "points").mkdir(mode=0o777)
    with ExitStack() as started:
        started.enter_context(receiver.running())
        model = started.enter_context(model_server())
        stack = Stack(
            tmp_path / "state",
            DATABASE_URL=make_conninfo(empty_database_url, password=password),
            MODEL="openai:test",
            OPENAI_BASE_URL=model.base_url,
            OPENAI_API_KEY=model_key,
            METRICS_ADDRESS=f"127.0.0.1:{free_ports(WORKERS + 3, in_a_row=WORKERS + 3)[0]}",
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{collector_key}",
            OTEL_BSP_SCHEDULE_DELAY="100",
            **crash_points_in(tmp_path / "points"),
            LOG_LEVEL="DEBUG",
        )
        started.callback(stack.kill_if_running)
        stack.start()
        processes = started.enter_context(evidence.Processes(stack))
        calls = Calls(stack, stack.ready["demo"]["workspace_id"])
        calls.with_each({**stack.tokens, "unknown": calls.key("that is unknown")})
        calls.in_wrong_places(stack.tokens["full_access"])
        calls.in_bodies(stack.tokens["full_access"])
        written = calls.in_texts(stack.tokens["full_access"])
        work_and_crash(stack, model, tmp_path / "points")
        known = [
            *issued(stack.ready, stack.state_dir),
            *calls.made_up,
            *written,
            *agents_secrets(stack),
            Secret("the password of the database", password),
            Secret("the model's key", model_key),
            Secret("the collector's key", collector_key),
        ]
        secrets = Secrets(known)
        socket = postgres.places(stack.state_dir).socket_dir / "envoy.sock"
        found = [
            *evidence.database(stack),
            *evidence.metrics(stack, WORKERS + 1, socket),
            *(("answer", answer) for answer in calls.answers),
        ]
        assert_none(evidence.files(stack), secrets)
        assert stack.stop() == 0
        found += [*processes.seen(), *(("span", data) for data in receiver.received)]
        # Both Envoy and the workers have sent this key to the collector.
        assert {headers["authorization"] for headers in receiver.headers} == {
            f"Bearer {collector_key}"
        }
        assert receiver.services() == {"evershell-edge", "evershell-control-plane"}
    found += evidence.files(stack)
    assert_none(found, secrets)
    assert_whole([place for place, _ in found])
    for name in HOLDERS:
        if (path := stack.state_dir / name).exists():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
