"""Issues the certificates of pod/tls.py.

The keys of both authorities are derived from the control plane's private key, like the secrets of
pod_tokens.py. So nothing is stored, every program of the control plane has the same authorities,
and another key ends the certificates together with the tokens.
"""

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from evershell.server.auth.pod_tokens import private_bytes
from evershell.server.core.runtime import AgentIdentity
from evershell.server.pod.tls import CONTROL_PLANE, TlsIdentity, agent_name

# The order of P-256 (FIPS 186-5). A number with 128 more bits, modulo the order, is as good as
# uniform (appendix A.2.1).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SEED_BYTES = 48
# A certificate is bound to an epoch or to the control plane's key, not to a time. The end is the
# value for this case in RFC 5280, section 4.1.2.5.
_BEGIN, _END = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class AgentCertificates:
    """Issues the certificates of the control plane and of its agents."""

    def __init__(self, private_jwk: str) -> None:
        self._control_plane = _Authority(private_jwk, "control plane")
        self._agents = _Authority(private_jwk, "agents")

    def control_plane(self) -> TlsIdentity:
        """A new certificate of a program of the control plane."""
        return self._control_plane.issue(CONTROL_PLANE, trusted=self._agents.certificate)

    def agent(self, agent: AgentIdentity) -> TlsIdentity:
        """A new certificate of the agent."""
        name = agent_name(agent.workspace_id, agent.epoch)
        return self._agents.issue(name, trusted=self._control_plane.certificate)


class _Authority:
    def __init__(self, private_jwk: str, name: str) -> None:
        hkdf = HKDF(SHA256(), _SEED_BYTES, salt=None, info=f"evershell tls {name}".encode())
        seed = int.from_bytes(hkdf.derive(private_bytes(private_jwk)))
        self._key = ec.derive_private_key(seed % (_ORDER - 1) + 1, ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"evershell {name}")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        own = self._builder(self._name, self._key.public_key())
        self.certificate = self._signed(own.add_extension(constraints, critical=True))

    def issue(self, name: str, *, trusted: str) -> TlsIdentity:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        # Critical, because the subject is empty: RFC 5280, section 4.2.1.6.
        leaf = self._builder(x509.Name([]), key.public_key()).add_extension(names, critical=True)
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
