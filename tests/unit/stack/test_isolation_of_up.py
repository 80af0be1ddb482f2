"""What `up` does where pods have no sandbox."""

from typing import Literal

import pytest

from evershell.app.settings import Settings
from evershell.core.errors import OperatorError
from evershell.fleet.local import isolation
from evershell.stack import up


@pytest.fixture(autouse=True)
def _no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*_: object) -> isolation.Isolation:
        raise OperatorError("the reason and the remedy")

    monkeypatch.setattr(isolation, "choose", choose)


def test_a_stack_that_only_its_machine_can_call_starts_with_a_warning(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert up._choose_isolation(Settings()) == "none"
    said = capfd.readouterr().out
    assert "WARNING: the reason and the remedy" in said
    assert "Isolation of pods: none. It lacks any boundary" in said


def test_pods_on_kubernetes_need_no_sandbox_here() -> None:
    elsewhere = Settings(
        pod_backend="kubernetes",
        pod_image="image",
        runtime_service="workers:1",
        listen_host="192.0.2.1",
    )
    assert up._choose_isolation(elsewhere) == "auto"


@pytest.mark.parametrize(("wanted", "host"), [("sandbox", "127.0.0.1"), ("auto", "192.0.2.1")])
def test_another_stack_is_refused(wanted: Literal["auto", "sandbox"], host: str) -> None:
    with pytest.raises(OperatorError, match="the reason"):
        up._choose_isolation(Settings(pod_isolation=wanted, listen_host=host))
