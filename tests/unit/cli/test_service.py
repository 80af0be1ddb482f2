"""Which service a command calls, and with which credential."""

import io
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner

from evershell.cli import profiles
from evershell.cli.main import main
from evershell.cli.profiles import Profile
from evershell.cli.service import find_target
from tests.unit.cli.services import HOME, READY, find

pytestmark = pytest.mark.usefixtures("environment")


def test_the_demo_credential_is_sent_only_to_its_own_stack(tmp_path: Path) -> None:
    READY.write(tmp_path)
    assert find() == ("http://127.0.0.1:8081", "sk_demo")
    assert find(token="sk_file\n") == ("http://127.0.0.1:8081", "sk_file")
    for url in ("127.0.0.1:8081", "http://127.0.0.1:8081/"):
        assert find(url) == ("http://127.0.0.1:8081", "sk_demo")
    for url in ("elsewhere:443", "https://127.0.0.1:8081", "http://127.0.0.1:80810"):
        with pytest.raises(ClickException, match="There is no credential for"):
            find(url)


def test_the_credential_of_a_profile_is_sent_only_to_its_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    READY.write(tmp_path)
    profiles.add("default", Profile(HOME, "sk_home"))
    profiles.add("other", Profile("https://b", "sk_b"))
    assert find() == (HOME, "sk_home")
    assert find("acme.evershell.ai") == (HOME, "sk_home")
    assert find(profile="other") == ("https://b", "sk_b")
    assert find("http://127.0.0.1:8081") == ("http://127.0.0.1:8081", "sk_demo")
    for url in (f"{HOME}:443/", "HTTPS://ACME.evershell.ai", "acme.evershell.ai:443"):
        assert find(url) == (HOME, "sk_home")
    profiles.add("default", Profile("127.0.0.1:9", "sk_home"))
    assert find("http://127.0.0.1:9") == ("127.0.0.1:9", "sk_home")
    for url in ("https://b", "https://127.0.0.1:9", "http://acme.evershell.ai", "https://a b"):
        with pytest.raises(ClickException, match="There is no credential for"):
            find(url)
    with pytest.raises(ClickException, match=r"no profile third\. Run `evershell login"):
        find(profile="third")
    monkeypatch.setenv("EVERSHELL_URL", "https://c")
    monkeypatch.setenv("EVERSHELL_API_KEY", "sk_c")
    assert find() == ("https://c", "sk_c")
    # A profile named on the command line takes precedence over the environment, except for the
    # credential.
    assert find(profile="other") == ("https://b", "sk_c")


def test_a_stack_with_tls_is_called_over_tls(tmp_path: Path) -> None:
    READY.model_copy(update={"tls_cert_file": "/etc/edge.pem"}).write(tmp_path)
    found = find_target("127.0.0.1:8081", "", None, {"cert_file": "me.pem"})
    assert (found.url, found.files) == (
        "https://127.0.0.1:8081",
        {"ca_file": "/etc/edge.pem", "cert_file": "me.pem"},
    )


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"demo": {"tokens": "sk_secret"}}',
        '{"profiles": {"default": {"url": "", "credential": "sk_secret"}}}',
        '{"profiles": {"default": {"url": "https://a", "credential": "sk_secret", "ca_file": 5}}}',
    ],
)
def test_files_that_are_not_valid_are_refused_in_one_line_without_their_secrets(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "ready.json").write_text(content)
    result = CliRunner().invoke(main, ["cancel", "ws_1"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"Error: {tmp_path / 'ready.json'} cannot be read: ")
    profiles.path().parent.mkdir()
    profiles.path().write_text(content)
    profiles.path().chmod(0o600)
    refused = CliRunner().invoke(main, ["cancel", "ws_1"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert f"{profiles.path()} is not valid" in refused.stderr
    assert "sk_secret" not in result.stderr + refused.stderr
    # Broken files do not matter if the call needs neither of them.
    assert find("https://elsewhere", token="sk_mine") == ("https://elsewhere", "sk_mine")


def test_a_file_of_profiles_that_others_can_read_is_refused() -> None:
    profiles.add("default", Profile(HOME, "sk_home"))
    assert profiles.path().stat().st_mode & 0o777 == 0o600
    assert profiles.path().parent.stat().st_mode & 0o777 == 0o700
    profiles.path().chmod(0o640)
    with pytest.raises(ClickException, match="Others can read the credentials"):
        find()
    assert "sk_home" not in repr(Profile(HOME, "sk_home")) + repr(
        find_target("x", "", io.StringIO("sk_home"), {})
    )
