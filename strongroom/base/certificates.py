"""The certificates of agents: an authority of the installation's own, its server, and one short-lived leaf per host.

Three kinds that cannot stand in for each other: only the authority signs, a server's is for serverAuth, an agent's for
clientAuth and names one agent of one project.
"""

import base64
import hashlib
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER_NAME = "agents.strongroom"  # in the certificate of every server: the authority says which one it is
FINGERPRINT_CHARS = 32  # of SHA-256, base32: 160 bits
AUTHORITY_LIFE = timedelta(days=20 * 365)
SERVER_LIFE = timedelta(days=5 * 365)  # made anew by every start
AGENT_LIFE = timedelta(days=14)
CLOCKS_DIFFER = timedelta(hours=1)  # a host whose clock is behind can use its certificate at once
_SCHEME = "strongroom:agent:"

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def dump_key(key: Key) -> bytes:
    """PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> Key:
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def fingerprint(authority: bytes) -> str:
    """Of an authority's certificate (DER), as a token carries it."""
    return base64.b32encode(hashlib.sha256(authority).digest()[:20]).decode("ascii")


def make_authority(key: Key, now: datetime) -> bytes:
    """Its certificate, DER."""
    name = _name("Strongroom agents")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    made = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def make_server(authority: bytes, authority_key: Key, key: Key, now: datetime) -> bytes:
    """A certificate for the port that agents dial, DER."""
    issuer = x509.load_der_x509_certificate(authority)
    made = _leaf(
        issuer, _name("Strongroom server"), key.public_key(), now, SERVER_LIFE, ExtendedKeyUsageOID.SERVER_AUTH
    )
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
    return made.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def make_agent(
    authority: bytes, authority_key: Key, request: bytes, project_id: str, agent_id: str, now: datetime
) -> tuple[bytes, str]:
    """(certificate as DER, serial in hex) for the key of a request, whatever else that asks for.

    Raises ValueError for a request that is none, is not signed by its key, or whose key is not P-256.
    """
    issuer = x509.load_der_x509_certificate(authority)
    asked = x509.load_der_x509_csr(request)
    try:
        if not asked.is_signature_valid:
            raise ValueError("the request is not signed by its key")
    except InvalidSignature as err:
        raise ValueError("the request is not signed by its key") from err
    key = asked.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the key is not of P-256")
    made = _leaf(issuer, _name(agent_id), key, now, AGENT_LIFE, ExtendedKeyUsageOID.CLIENT_AUTH)
    identifier = x509.UniformResourceIdentifier(f"{_SCHEME}{project_id}:{agent_id}")
    made = made.add_extension(x509.SubjectAlternativeName([identifier]), critical=False)
    signed = made.sign(authority_key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER), f"{signed.serial_number:x}"


def agent_of(certificate: bytes) -> tuple[str, str, str]:
    """(project id, agent id, serial in hex) of an agent's certificate that TLS has checked. Raises ValueError."""
    found = x509.load_der_x509_certificate(certificate)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as err:
        raise ValueError("it names nobody") from err
    for text in names.get_values_for_type(x509.UniformResourceIdentifier):
        project_id, colon, agent_id = text.removeprefix(_SCHEME).partition(":")
        if text.startswith(_SCHEME) and colon:
            return project_id, agent_id, f"{found.serial_number:x}"
    raise ValueError("it names no agent")


def new_request(key: Key) -> bytes:
    """PKCS#10, DER. What the certificate is for, who signs it writes into it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name("strongroom agent"))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def is_issued_by(certificate: bytes, authority: bytes) -> bool:
    try:
        issuer = x509.load_der_x509_certificate(authority)
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def serial_of(certificate: bytes) -> str:
    """In hex."""
    return f"{x509.load_der_x509_certificate(certificate).serial_number:x}"


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + life)
    )


def _leaf(
    issuer: x509.Certificate,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
    usage: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    return (
        _builder(subject, issuer.subject, key, now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(authority, critical=False)
    )
