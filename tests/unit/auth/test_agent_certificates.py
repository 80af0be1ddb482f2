"""The certificates of agents and of the control plane, and their format."""

from datetime import UTC, datetime

from cryptography import x509

from evershell.auth.agent_certificates import AgentCertificates
from evershell.auth.signing_keys import new_key
from evershell.core.runtime import AgentIdentity
from evershell.pod.tls import CONTROL_PLANE, TlsIdentity, agent_name
from tests.support.agent_tls import is_issued_by, parsed

KEY = new_key()
AGENT = AgentIdentity("ws_01M87BM0PP0WA7E1PDVM5FMDFS", 3)


def names(identity: TlsIdentity) -> list[str]:
    extensions = parsed(identity.certificate).extensions
    found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.DNSName)


def test_each_certificate_has_one_name() -> None:
    of = AgentCertificates(KEY)
    assert names(of.control_plane()) == [CONTROL_PLANE]
    assert names(of.agent(AGENT)) == [agent_name(AGENT.workspace_id, 3)]
    others = [("ws_1", 3), ("ws_1", 33), ("ws_13", 3), ("3.ws_1", 3)]
    assert len({agent_name(*other) for other in others}) == len(others)


def test_every_program_has_the_same_authorities() -> None:
    """Each program makes the authorities' certificates anew, with the same keys and names."""
    fleet, worker = AgentCertificates(KEY), AgentCertificates(KEY)
    assert is_issued_by(fleet.agent(AGENT).certificate, worker.control_plane().trusted)
    assert is_issued_by(worker.control_plane().certificate, fleet.agent(AGENT).trusted)


def test_another_key_of_the_control_plane_gives_other_authorities() -> None:
    old, new = AgentCertificates(KEY), AgentCertificates(new_key())
    assert not is_issued_by(old.agent(AGENT).certificate, new.control_plane().trusted)
    assert not is_issued_by(new.control_plane().certificate, old.agent(AGENT).trusted)


def test_each_certificate_has_a_key_of_its_own() -> None:
    of = AgentCertificates(KEY)
    made = [of.agent(AGENT), of.agent(AGENT), of.control_plane(), of.control_plane()]
    assert len({each.private_key for each in made}) == len(made)


def test_a_certificate_does_not_depend_on_the_time() -> None:
    """Clocks may be wrong, so a certificate is valid until its epoch or its signing key ends."""
    certificate = parsed(AgentCertificates(KEY).agent(AGENT).certificate)
    assert certificate.not_valid_before_utc < datetime(2001, 1, 1, tzinfo=UTC)
    assert certificate.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_the_certificate_of_an_agent_can_issue_no_other_one() -> None:
    of = AgentCertificates(KEY)
    agent = of.agent(AGENT)
    authority = parsed(of.control_plane().trusted).extensions
    constraints = authority.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca and constraints.path_length == 0
    own = [each.value for each in parsed(agent.certificate).extensions]
    assert not any(isinstance(each, x509.BasicConstraints) and each.ca for each in own)


def test_the_repr_of_an_identity_hides_its_key() -> None:
    identity = AgentCertificates(KEY).control_plane()
    assert "PRIVATE KEY" in identity.private_key
    assert "PRIVATE KEY" not in repr(identity)
