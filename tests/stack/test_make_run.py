"""The stack starts, stops and restarts."""

import stat
from pathlib import Path

from tests.support.printed_calls import run_printed_calls
from tests.support.stack import Stack


def test_ready_json_and_credentials_are_private(stack: Stack) -> None:
    for name in ("ready.json", "demo.env", "demo.json", "control-plane.jwk"):
        assert stat.S_IMODE((stack.state_dir / name).stat().st_mode) == 0o600, name
    assert set(stack.tokens) == {
        "full_access",
        "submit_observe",
        "read_only",
        "owner",
        "member",
        "expired",
        "other_org",
    }
    assert not any(token in stack.output.read_text() for token in stack.tokens.values())
    # gRPC's C library wrote nothing, even when the stack started programs.
    assert "fork_posix" not in stack.output.read_text()


def test_the_printed_calls_work(stack: Stack) -> None:
    run_printed_calls(stack)


def test_a_second_stack_on_the_same_state_or_port_explains_what_to_change(
    stack: Stack, tmp_path: Path
) -> None:
    assert "Another run uses" in Stack(stack.state_dir).refuses_to_start()
    on_the_same_port = Stack(
        tmp_path / "state", REST_PORT=stack.ready["rest_url"].rpartition(":")[2]
    )
    assert "Set REST_PORT to another one" in on_the_same_port.refuses_to_start()
    assert (
        stack.rest().get(f"/v1/workspaces/{stack.ready['demo']['workspace_id']}")["status"]
        == "idle"
    )
