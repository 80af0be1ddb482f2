"""Certificates for agents, for the control plane, and for strangers."""

from dataclasses import asdict, dataclass, replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from evershell.auth.agent_certificates import AgentCertificates
from evershell.auth.signing_keys import new_key
from evershell.core.runtime import AgentIdentity
from evershell.pod.tls import TlsIdentity


@dataclass(frozen=True)
class Certificates:
    """Issues the certificates of one stack."""

    of: AgentCertificates
    control_plane: TlsIdentity

    def agent(self, workspace_id: str, epoch: int) -> TlsIdentity:
        return self.of.agent(AgentIdentity(workspace_id, epoch))

    def strangers(self, workspace_id: str, epoch: int, trusted: str) -> dict[str, TlsIdentity]:
        """Returns identities that do not belong to this agent, by description.

        All of them trust `trusted`.
        """
        other = certificates()
        found = {
            "another workspace": self.agent(f"{workspace_id}x", epoch),
            "an earlier epoch": self.agent(workspace_id, epoch - 1),
            "a later epoch": self.agent(workspace_id, epoch + 1),
            "the control plane": self.control_plane,
            "an agent of another control plane": other.agent(workspace_id, epoch),
            "another control plane": other.control_plane,
        }
        return {name: replace(each, trusted=trusted) for name, each in found.items()}


def certificates(key: str = "") -> Certificates:
    """Returns the certificates of a stack with this signing key; without a key, of a new stack."""
    made = AgentCertificates(key or new_key())
    return Certificates(made, made.control_plane())


def parsed(pem: str) -> x509.Certificate:
    """Parses a PEM text. Returns its first certificate."""
    return x509.load_pem_x509_certificate(pem.encode())


def is_issued_by(certificate: str, authority: str) -> bool:
    """Whether the first certificate in `authority` has signed `certificate`."""
    try:
        parsed(certificate).verify_directly_issued_by(parsed(authority))
    except (InvalidSignature, ValueError):
        return False
    return True


def fields(identity: TlsIdentity) -> dict[str, str]:
    """Returns the identity as fields of an agent's spec."""
    values = asdict(identity)
    return {
        "tls_certificate": values["certificate"],
        "tls_key": values["private_key"],
        "tls_trusted": values["trusted"],
    }
