"""Issues the certificates that pod/tls.py describes.

There are two authorities: one for the control plane, and one for agents. Their keys are derived
from the control plane's signing key, like the secrets of pod_tokens.py. So nothing is stored, every
program of the control plane has the same authorities, and a new signing key invalidates the
certificates together with the tokens. If there are several signing keys, each has its own two
authorities.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from evershell.auth.signing_keys import private_keys
from evershell.core.runtime import AgentIdentity
from evershell.pod.tls import CONTROL_PLANE, TlsIdentity, agent_name

# The order of P-256 (FIPS 186-5). A random number that is 128 bits longer than the order is
# practically uniform modulo the order (appendix A.2.1).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SEED_BYTES = 48
# A certificate is bound to an epoch or to the control plane's key, and does not expire. For such a
# certificate, RFC 5280, section 4.1.2.5, defines the end of the year 9999 as its end.
_BEGIN, _END = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class AgentCertificates:
    """Issues the certificates of the control plane and of its agents."""

    def __init__(self, signing_keys: str) -> None:
        """`signing_keys` is the content of the key file. Raises ValueError."""
        keys = private_keys(signing_keys)
        self._control_plane = [_Authority(each, "control plane") for each in keys]
        self._agents = [_Authority(each, "agents") for each in keys]

    def control_plane(self) -> TlsIdentity:
        """A new certificate for a program of the control plane.

        The certificate is issued with the last signing key, because every agent trusts this key. An
        agent that was started before a new first key was added trusts only the last one.
        """
        return self._control_plane[-1].issue(CONTROL_PLANE, trusted=_certificates(self._agents))

    def agent(self, agent: AgentIdentity) -> TlsIdentity:
        name = agent_name(agent.workspace_id, agent.epoch)
        authority = self._agents[agent.signing_key]
        return authority.issue(name, trusted=_certificates(self._control_plane))


class _Authority:
    def __init__(self, private_key: bytes, name: str) -> None:
        hkdf = HKDF(SHA256(), _SEED_BYTES, salt=None, info=f"evershell tls {name}".encode())
        seed = int.from_bytes(hkdf.derive(private_key))
        self._key = ec.derive_private_key(seed % (_ORDER - 1) + 1, ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"evershell {name}")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        # The authorities of several signing keys have the same name. This identifier tells them
        # apart.
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        own = self._builder(self._name, self._key.public_key())
        self.certificate = self._signed(
            own.add_extension(constraints, critical=True).add_extension(identifier, critical=False)
        )

    def issue(self, name: str, *, trusted: str) -> TlsIdentity:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        # Critical, because the subject is empty: RFC 5280, section 4.2.1.6.
        leaf = self._builder(x509.Name([]), key.public_key()).add_extension(names, critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        leaf = leaf.add_extension(issuer, critical=False)
        private_key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return TlsIdentity(
            certificate=self._signed(leaf), private_key=private_key.decode(), trusted=trusted
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
        )

    def _signed(self, builder: x509.CertificateBuilder) -> str:
        certificate = builder.sign(self._key, SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _certificates(authorities: Sequence[_Authority]) -> str:
    return "".join(each.certificate for each in authorities)
