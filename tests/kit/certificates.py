"""A certificate authority of our own: a root and a certificate for signing, as C2PA wants them."""

from __future__ import annotations

import datetime
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KINDS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
}
P256K = ec.SECP256K1()  # a curve that C2PA has no algorithm for


def name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def certificate(subject, key, issuer, issuer_key, *, authority: bool, days: tuple[int, int] = (-1, 30)):
    now = datetime.datetime.now(datetime.timezone.utc)
    begin, end = (now + datetime.timedelta(days=n) for n in days)
    usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(end)
    for extension, critical in [
        (x509.BasicConstraints(authority, None), True),
        (usage, True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
    ]:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem(key, password: bytes | None = None, form=serialization.PrivateFormat.PKCS8) -> bytes:
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, secret)


def chain(kind: str = "es256", **more) -> tuple[bytes, bytes, bytes]:
    """(certificates, the first one's first; its key; the root) in PEM."""
    root_key, key = KINDS["es256"](), KINDS[kind]()
    root = certificate("root", root_key, "root", root_key, authority=True)
    return certificate("signer", key, "root", root_key, authority=False, **more) + root, pem(key), root


def verified(path, root: bytes):
    """What C2PA's reader that trusts this root says: the state, the codes of what is wrong, the manifest."""
    import c2pa

    trust = {"trust": {"trust_anchors": root.decode()}, "verify": {"verify_trust": True}}
    with c2pa.Context(c2pa.Settings.from_dict(trust)) as context, c2pa.Reader(str(path), context=context) as reader:
        found = json.loads(reader.json())
    wrong = [status["code"] for status in found.get("validation_status") or []]
    return found["validation_state"], wrong, found["manifests"][found["active_manifest"]]
