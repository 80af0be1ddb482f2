"""The command `login`, and the file of profiles that it writes."""

import errno
import json
import os

import pytest
from click import ClickException
from click.testing import CliRunner

from evershell.cli import login as login_module
from evershell.cli import profiles, service
from evershell.cli.main import main
from evershell.cli.profiles import Profile
from evershell.client import (
    Page,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    Workspace,
)
from tests.unit.cli.fake_client import FakeClient
from tests.unit.cli.services import HOME, find

pytestmark = pytest.mark.usefixtures("environment")


def log_in(
    monkeypatch: pytest.MonkeyPatch, answer: Page[Workspace] | Exception, *options: str, typed: str
) -> tuple[int, str]:
    class Pages:
        def pages(self) -> "Pages":
            return self

        def __next__(self) -> Page[Workspace]:
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(service, "Client", FakeClient(list_workspaces=[Pages()]))
    result = CliRunner().invoke(main, ["login", *options], input=typed)
    assert "sk_mine" not in result.output
    return result.exit_code, result.output


def test_login_stores_a_credential_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert login_module.login.name == "login"
    empty: Page[Workspace] = Page((), None)
    code, output = log_in(monkeypatch, empty, typed=f"{HOME}\nsk_mine\n")
    assert (code, f"Profile default calls {HOME}" in output) == (0, True)
    options = ("--url", "https://b", "--profile", "b", "--token-file", "-")
    # The credential is valid, although it may not list workspaces.
    assert log_in(monkeypatch, PermissionDeniedError("No."), *options, typed="sk_mine\n")[0] == 0
    assert find() == (HOME, "sk_mine")
    assert find(profile="b") == ("https://b", "sk_mine")
    assert set(json.loads(profiles.path().read_text())["profiles"]) == {"default", "b"}


@pytest.mark.parametrize(
    ("error", "exit_code"), [(UnauthenticatedError("No."), 5), (UnavailableError("Later."), 6)]
)
def test_login_stores_nothing_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, error: Exception, exit_code: int
) -> None:
    code, output = log_in(monkeypatch, error, "--url", HOME, typed="sk_mine\n")
    assert (code, str(error).partition(":")[0] in output) == (exit_code, True)
    assert not profiles.path().exists()


@pytest.mark.parametrize(
    ("options", "missing"), [((), "--url"), (("--url", HOME), "--token-file -")]
)
def test_without_a_terminal_the_options_are_named(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], missing: str
) -> None:
    code, output = log_in(monkeypatch, Page((), None), *options, typed="")
    assert (code, f"There is no terminal to ask for it: use {missing}." in output) == (2, True)


def test_a_login_that_cannot_write_leaves_no_credential_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(ClickException, match="cannot be written: No space left on device"):
        profiles.add("default", Profile(HOME, "sk_home"))
    assert list(profiles.path().parent.iterdir()) == []
