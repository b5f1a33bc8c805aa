"""Certificates for one test, signed by its own certificate authority."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in PEM files."""

    certificate: Path
    key: Path


def make_authority(folder: Path, hosts: tuple[str, ...] = ("neox.test",)) -> tuple[Path, Pair]:
    """Returns the certificate of an authority, and a pair for these hosts that it has signed."""
    authority = Authority(folder)
    return authority.root, authority.issue("leaf", hosts)


class Authority:
    """A certificate authority. `root` is its own certificate, in a PEM file."""

    def __init__(self, folder: Path, file: str = "ca.pem") -> None:
        self.root = folder / file
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = _sign("authority", self._key.public_key(), "authority", self._key, ())
        self.root.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, hosts: tuple[str, ...] = ("neox.test",), *, lifetime: timedelta = timedelta(days=1)) -> Pair:
        """Returns a pair with this common name for these hosts. With `again`, it replaces the files of the previous one."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _sign(name, key.public_key(), "authority", self._key, hosts, lifetime)
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        pair.key.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
        return pair


def _sign(
    name: str,
    key: ec.EllipticCurvePublicKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    hosts: tuple[str, ...],
    lifetime: timedelta = timedelta(days=1),
) -> x509.Certificate:
    """Returns a certificate that became valid an hour ago. Without hosts, it is that of an authority."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None), critical=True)
    )
    if hosts:
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
