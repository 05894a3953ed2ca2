"""A deployment's own certificate authority, and the server's certificate that it signs."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedfree.errors import ConfigError
from fedfree.host.channel import LOOPBACK

AUTHORITY_DAYS, SERVER_DAYS = 3650, 825

_CLOCK_SKEW = timedelta(hours=1)


def subject_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """Host names and IP addresses as a certificate holds them; raises ConfigError.

    This machine is always among them: Flower's commands and the gRPC door's health check run on the server.
    """
    return [_subject_name(name) for name in dict.fromkeys((*names, *LOOPBACK))]


def _subject_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    letters = name.replace(".", "").replace("-", "")
    if not (letters.isascii() and letters.isalnum()):
        raise ConfigError(f"{name!r} is neither a host name nor an IP address")
    return x509.DNSName(name)


def make_authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A new authority, which signs nothing but the certificates of one deployment."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedFREE deployment CA")])
    usage = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _draft(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return certificate, key


def make_server_certificate(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, names: Sequence[str]
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for these host names and IP addresses, and for this machine; raises ConfigError."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedFREE server")])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _draft(name, authority.subject, key, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(subject_names(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    return certificate, key


def _draft(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as a file holds it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as a file holds it, not encrypted: the file's permissions protect it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_public_key(path: Path, content: bytes) -> bytes:
    """An organisation's public key, as ``ssh-keygen -t ecdsa`` writes it, without its comment.

    Raises:
        ConfigError: something else, for instance the private key.
    """
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{path} is a private key, which must not leave its organisation: ask for the .pub")
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a public key in the format of ssh") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} is not an elliptic-curve key: make one with `fedfree-client init`")
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
