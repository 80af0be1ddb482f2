"""The start of an agent whose spec contains a bootstrap token instead of secrets."""

import subprocess
import sys
from typing import Any

import pytest

from evershell.agents.shutdown import ExitCode
from evershell.conformance.control_plane import WORKSPACE_ID
from evershell.pod.spec import PodSpec
from tests.support.agent_tls import certificates, fields
from tests.unit.agents.conftest import Start, started
from tests.unit.agents.faulty_plane import EPOCH, ControlPlane

NO_SECRETS = {"runtime_secret": "", "signal_secret": ""}


async def test_an_agent_gets_its_secrets_and_works(
    control_plane: ControlPlane, start: Start
) -> None:
    control_plane.lost_bootstraps = 2
    await started(control_plane, start, bootstrap_token=control_plane.bootstrap_token, **NO_SECRETS)
    assert control_plane.calls[:4] == ["Bootstrap", "Bootstrap", "Bootstrap", "Register"]
    await control_plane.run_task("t1", "echo done")
    await control_plane.reaches(lambda: control_plane.end("t1"))
    assert control_plane.iterations("t1")[0].tool_call.result.output == "done\n"


async def test_an_agent_gets_its_secrets_over_tls(
    control_plane: ControlPlane, start: Start
) -> None:
    """The agent calls Bootstrap with the certificate in its first spec.

    Then it uses the certificate in the answer.
    """
    of = certificates()
    control_plane.tls = of.control_plane
    control_plane.more = fields(of.agent(WORKSPACE_ID, EPOCH))
    first = fields(of.agent(WORKSPACE_ID, EPOCH))
    await started(
        control_plane, start, bootstrap_token=control_plane.bootstrap_token, **NO_SECRETS | first
    )
    await control_plane.run_task("t1", "echo done")
    await control_plane.reaches(lambda: control_plane.end("t1"))


def test_an_agent_ignores_what_a_newer_control_plane_tells_it() -> None:
    own: dict[str, Any] = {"workspace_id": "ws_1", "epoch": 1, "runtime_addresses": []}
    own |= NO_SECRETS
    assert PodSpec.read({**own, "of_the_future": True}) == PodSpec(**own)
    with pytest.raises(TypeError, match="epoch"):
        PodSpec.read({"workspace_id": "ws_1"})


async def test_an_agent_whose_bootstrap_token_was_spent_exits(
    control_plane: ControlPlane, start: Start
) -> None:
    address = await control_plane.serve()
    await control_plane.spend_bootstrap_token()
    agent = start([address], bootstrap_token=control_plane.bootstrap_token, **NO_SECRETS)
    assert await agent is ExitCode.UNAUTHORIZED
    assert control_plane.calls == ["Bootstrap"]


async def test_an_agent_with_a_forged_bootstrap_token_exits(
    control_plane: ControlPlane, start: Start
) -> None:
    address = await control_plane.serve()
    forged = control_plane.bootstrap_token[:-1] + "x"
    assert await start([address], bootstrap_token=forged, **NO_SECRETS) is ExitCode.UNAUTHORIZED


async def test_an_agent_listens_where_its_own_spec_says(
    control_plane: ControlPlane, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_IP", "127.0.0.1")
    own = {"bootstrap_token": control_plane.bootstrap_token, "listen_host": ""}
    await started(control_plane, start, **own, **NO_SECRETS)
    assert control_plane.address.startswith("127.0.0.1:")


def test_an_agent_hides_from_other_processes_of_its_user() -> None:
    """The number 3 stands for PR_GET_DUMPABLE: see prctl(2)."""
    code = (
        "import ctypes; from evershell.pod.process import become_unreadable\n"
        "become_unreadable(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
