"""A certificate authority of the tests' own, and what it signs, as files in PEM form."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Identity:
    """A certificate with its key; ``both`` holds key and certificate, as a broker's PEM keystore does."""

    certificate: Path
    key: Path
    both: Path


class Authority:
    """Signs certificates into ``folder``; ``path`` is its own certificate."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _named(name)
        self._certificate = (
            _begun(self._subject, self._subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str, *, password: str = "") -> Identity:
        """A certificate of ``CN=name``, for this machine's loopback addresses too; its key encrypted, or not."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _begun(_named(name), self._subject, key.public_key())
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
                ),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            encryption = serialization.BestAvailableEncryption(password.encode())
        encoded_key = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        encoded = certificate.public_bytes(serialization.Encoding.PEM)
        stem = self._folder / f"{self._name}-{name}"
        identity = Identity(stem.with_suffix(".crt"), stem.with_suffix(".key"), stem.with_suffix(".both"))
        identity.certificate.write_bytes(encoded)
        identity.key.write_bytes(encoded_key)
        identity.both.write_bytes(encoded_key + encoded)
        return identity

    def revoke(self) -> Path:
        """A list of revoked certificates, which is empty."""
        now = datetime.datetime.now(datetime.UTC)
        revocations = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._subject)
            .last_update(now - _DAY)
            .next_update(now + 30 * _DAY)
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / f"{self._name}.crl"
        path.write_bytes(revocations.public_bytes(serialization.Encoding.PEM))
        return path


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 30 * _DAY)
    )
