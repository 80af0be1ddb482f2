"""Which address a client calls, whether it uses TLS, and which credential it sends."""

from typing import Any

import pytest

from evershell.client import Client, ConfigurationError
from evershell.client.endpoint import channel_options, find_endpoint

HOST = "acme.evershell.ai"


@pytest.mark.parametrize(
    ("url", "target", "is_tls"),
    [
        (f"https://{HOST}", f"{HOST}:443", True),
        (f"https://{HOST}:8443/", f"{HOST}:8443", True),
        (f"http://{HOST}:8081", f"{HOST}:8081", False),
        (f"http://{HOST}", f"{HOST}:80", False),
        (f"{HOST}:8081", f"{HOST}:8081", True),
        (HOST, f"{HOST}:443", True),
        ("127.0.0.1:8081", "127.0.0.1:8081", False),
        ("localhost:8081", "localhost:8081", False),
        ("[::1]:8081", "[::1]:8081", False),
        ("http://[::1]:8081", "[::1]:8081", False),
        ("localhost.evil.example:8081", "localhost.evil.example:8081", True),
        ("10.0.0.1:8081", "10.0.0.1:8081", True),
    ],
)
def test_only_a_loopback_address_is_plain_text_unless_asked_for(
    url: str, target: str, is_tls: bool
) -> None:
    found = find_endpoint(url)
    assert (found.target, found.is_tls) == (target, is_tls)
    assert find_endpoint(found.url) == found


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "https://",
        "https://host/v1",
        "https://me:pw@host",
        "http://a\nb:80",
        "http://host:0",
        "http://a,b:80",
    ],
)
def test_an_address_that_is_not_valid_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a valid address"):
        Client(url, "sk_secret")


def test_the_environment_has_the_address_and_the_credential(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("EVERSHELL_URL", raising=False)
    monkeypatch.delenv("EVERSHELL_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="EVERSHELL_URL"):
        Client(credential="sk_secret")
    monkeypatch.setenv("EVERSHELL_URL", HOST)
    with pytest.raises(ConfigurationError, match="EVERSHELL_API_KEY"):
        Client()
    monkeypatch.setenv("EVERSHELL_API_KEY", "sk_secret")
    with Client() as client:
        assert client.url == f"https://{HOST}:443"
        assert repr(client) == f"<Client of https://{HOST}:443>"
    monkeypatch.setenv("EVERSHELL_API_KEY", "sk_\nsecret")
    with pytest.raises(ConfigurationError) as raised:
        Client()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cert_file": "me.pem"}, "must be given together"),
        ({"ca_file": "/nowhere/ca.pem"}, "/nowhere/ca.pem cannot be read: No such"),
        ({"ca_file": "ca.pem", "url": "http://host"}, "is plain text"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Client(**{"url": HOST, "credential": "sk_secret", **arguments})


@pytest.mark.parametrize("url", ["http://[::1]:8081", "localhost"])
def test_this_machine_is_not_called_through_a_proxy(url: str) -> None:
    assert dict(channel_options(find_endpoint(url)))["grpc.enable_http_proxy"] == 0
    others = dict(channel_options(find_endpoint(HOST)))
    assert others["grpc.enable_http_proxy"] == 1
