"""Both listeners with TLS: accepted and refused callers, and errors about unusable files."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from evershell.client import CancelOutcome, Client, UnavailableError
from evershell.core.errors import OperatorError
from evershell.stack.envoy.config import Edge, Tls, render, validate
from tests.support.edge.certificates import HOST, Authority, Certificate
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub

CANCEL = "/v1/workspaces/ws_1/task/cancel"


@dataclass(frozen=True)
class Pki:
    """The certificates of the edge and of a caller, and the authorities that issued them."""

    authority: Authority
    edge: Certificate
    callers: Authority
    caller: Certificate


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    directory = tmp_path_factory.mktemp("pki")
    authority, callers = Authority(directory, "authority"), Authority(directory, "callers")
    return Pki(authority, authority.issue("edge"), callers, callers.issue("caller"))


@pytest.fixture(scope="session")
def tls_edge(
    _stub_and_address: tuple[Stub, str], pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    """An edge with TLS on both listeners. The gRPC listener requires client certificates."""
    tls = Tls(pki.edge.cert_file, pki.edge.key_file, pki.callers.ca_file)
    trusting = ssl.create_default_context(cafile=str(pki.authority.ca_file))
    with running_edge(
        short_directory(tmp_path_factory), _stub_and_address[1], tls=tls, verify=trusting
    ) as running:
        yield running


def files(pki: Pki, certificate: Certificate | None) -> dict[str, Any]:
    """The arguments for a client with this certificate."""
    own = (
        {"cert_file": certificate.cert_file, "key_file": certificate.key_file}
        if certificate
        else {}
    )
    return {"ca_file": pki.authority.ca_file, **own}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_old_tls_versions_are_refused(
    tls_edge: RunningEdge, pki: Pki, version: ssl.TLSVersion, accepted: bool
) -> None:
    context = ssl.create_default_context(cafile=str(pki.authority.ca_file))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
    if accepted:
        assert (
            httpx.get(f"{tls_edge.rest_url}/healthz", verify=context, trust_env=False).status_code
            == 200
        )
    else:
        with pytest.raises(httpx.ConnectError, match=r"(?i)protocol version|unsupported protocol"):
            httpx.get(f"{tls_edge.rest_url}/healthz", verify=context, trust_env=False)


def test_plain_text_is_refused(tls_edge: RunningEdge) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{HOST}:{tls_edge.settings.rest_port}/healthz", trust_env=False)


def test_a_grpc_caller_with_a_known_certificate_is_accepted(
    tls_edge: RunningEdge, stub: Stub, pki: Pki
) -> None:
    address = f"https://{tls_edge.grpc_address}"
    with Client(address, "token", **files(pki, pki.caller)) as client:
        assert client.cancel("ws_1").outcome is CancelOutcome.ACCEPTED


def test_a_grpc_caller_without_a_known_certificate_is_refused(
    tls_edge: RunningEdge, stub: Stub, pki: Pki
) -> None:
    for certificate in (None, pki.authority.issue("stranger")):
        address = f"https://{tls_edge.grpc_address}"
        with (
            Client(address, "token", **files(pki, certificate)) as client,
            pytest.raises(UnavailableError),
        ):
            client.cancel("ws_1")
    assert not stub.seen


def test_unusable_tls_files_are_reported_in_one_line(tmp_path: Path, pki: Pki) -> None:
    other, garbage = pki.authority.issue("other"), tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    usable = Tls(pki.edge.cert_file, pki.edge.key_file, pki.callers.ca_file)
    messages = {
        Tls(tmp_path / "none.pem", pki.edge.key_file): f"{tmp_path}/none.pem: No such file",
        Tls(pki.edge.cert_file, other.key_file): "TLS_KEY_FILE does not belong to TLS_CERT_FILE",
        Tls(garbage, pki.edge.key_file): f"certificate chain from {garbage}",
        Tls(pki.edge.cert_file, garbage): f"private key from {garbage}",
        Tls(
            pki.edge.cert_file, pki.edge.key_file, garbage
        ): f"trusted CA certificates from {garbage}",
    }
    for tls, message in messages.items():
        with pytest.raises(OperatorError) as raised:
            check(tmp_path, tls)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    check(tmp_path, usable)


def check(directory: Path, tls: Tls) -> None:
    render(
        Edge(8080, 8081, ["127.0.0.1:50051"], directory / "admin.sock", tls=tls),
        directory / "envoy.yaml",
    )
    validate(directory / "envoy.yaml")
