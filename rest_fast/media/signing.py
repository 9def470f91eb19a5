"""Signs finished videos: a C2PA manifest that says that a machine made the pictures, by a certificate of yours.

Whoever has the file can verify who signed it, that it has not been changed since, and what it says of its origin:
IPTC's digital source type, as :mod:`rest_fast.media.provenance` has written it into the file. The format is C2PA's
(https://spec.c2pa.org); it is read and written by ``c2pa-python`` (extra ``c2pa``).
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO

from PIL import Image

from rest_fast.errors import SigningError as SigningError
from rest_fast.media import provenance

TYPES = {".mp4": "video/mp4", ".m4v": "video/x-m4v", ".mov": "video/quicktime"}
KEYS = "an EC key on P-256, P-384 or P-521, an Ed25519 key, or an RSA key"
ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512", "Ed25519": "ed25519", "RSA": "ps256"}


class Signer:
    """Signs a finished video: ``signer(source, target)`` writes a signed copy. ``render(sign=signer)`` calls it.

    It is tried on a picture of one pixel before it is handed out, so that what would not sign is refused before work
    starts.

    Args:
        certificates: path or bytes: your certificate in PEM and, behind it, those that lead to a root, each signed by
            the next. Readers take it for who you are if they trust that root.
        key: path or bytes: its private key in PEM, without a password. The key decides on the algorithm.
        timestamp: address of a time-stamp authority (RFC 3161), which is asked at each signature. Without one,
            signatures are valid for as long as the certificate is.
    Raises: :class:`SigningError` for what cannot sign, and where ``c2pa-python`` is not installed.
    """

    def __init__(
        self,
        certificates: str | os.PathLike[str] | bytes,
        key: str | os.PathLike[str] | bytes,
        *,
        timestamp: str | None = None,
    ):
        self._c2pa = _library()
        chain, (algorithm, secret) = _certificates(certificates), _private_key(key)
        with _refusing("certificates and key", "a key that is the first certificate's, and a chain that C2PA allows"):
            self._signer = self._c2pa.Signer.from_info(self._c2pa.C2paSignerInfo(algorithm, chain, secret, timestamp))
            pixel = io.BytesIO()
            Image.new("RGB", (1, 1)).save(pixel, "JPEG")
            pixel.seek(0)
            self._write(pixel, io.BytesIO(), "pixel", "image/jpeg", provenance.SYNTHETIC)

    def __call__(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Write ``target``, a signed copy of a video that this package has written.

        Raises: :class:`SigningError` for a video that does not say its digital source type, for a target that is the
        video itself, and for what cannot be read or written.
        """
        name, kind = f"video {os.fspath(source)!r}", TYPES.get(Path(source).suffix.lower())
        if kind is None:
            raise SigningError(f"{name}: expected a name that ends in {', '.join(TYPES)}")
        with _refusing(name, "a file that can be read, and a copy that can be written"):
            said = provenance.read(source)
        if said is None:
            raise SigningError(f"{name}: expected a video that says its digital source type, got one that does not")
        if os.path.exists(target) and os.path.samefile(source, target):
            raise SigningError(f"target {os.fspath(target)!r}: expected another file than the video, got the same")
        with (
            _refusing(name, "a file that can be read, and a copy that can be written"),
            open(source, "rb") as read,
            open(target, "w+b") as written,
        ):
            self._write(read, written, Path(target).name, kind, said)

    def _write(self, read: IO[bytes], written: IO[bytes], title: str, kind: str, said: str) -> None:
        import rest_fast  # not above: it is the package whose name and version are stated

        software = {"name": "rest_fast", "version": rest_fast.__version__}
        origin = {
            "action": "c2pa.created",
            "digitalSourceType": provenance.VOCABULARY + said,
            "softwareAgent": software,
        }
        actions = {"label": "c2pa.actions", "data": {"actions": [origin]}}
        manifest = {"claim_generator_info": [software], "title": title, "format": kind, "assertions": [actions]}
        self._c2pa.Builder(manifest).sign(self._signer, kind, read, written)


def publish(sign: Callable[[Path, Path], None], made: Path, out: Path) -> None:
    """Give ``out`` the signed copy of ``made``, which may be the same file. Both stay as they are if that fails."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        copy = Path(folder, out.name)
        sign(made, copy)
        os.replace(copy, out)


def _library() -> ModuleType:
    try:
        import c2pa
    except ImportError:
        raise SigningError(
            "Signer: expected c2pa-python, which is not installed (pip install 'rest_fast[c2pa]')"
        ) from None
    return c2pa


def _content(name: str, given: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """What errors call it, and its bytes."""
    if isinstance(given, bytes):
        return name, given
    name = f"{name} {os.fspath(given)!r}"
    with _refusing(name, "a file that can be read"):
        return name, Path(given).read_bytes()


def _certificates(given: str | os.PathLike[str] | bytes) -> bytes:
    from cryptography import x509

    name, pem = _content("certificates", given)
    with _refusing(name, "certificates in PEM, yours first"):
        x509.load_pem_x509_certificates(pem)
    return pem


def _private_key(given: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """The algorithm of a key, and it in PKCS #8, which is what C2PA's library reads."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    name, pem = _content("key", given)
    expected = f"{KEYS}, in PEM and without a password"
    with _refusing(name, expected):
        key = serialization.load_pem_private_key(pem, None)
    kind = type(key).__name__
    if isinstance(key, ec.EllipticCurvePrivateKey):
        kind = key.curve.name
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        kind = "Ed25519"
    elif isinstance(key, rsa.RSAPrivateKey):
        kind = "RSA"
    if kind not in ALGORITHMS:
        raise SigningError(f"{name}: expected {expected}, got {kind}")
    form = serialization.PrivateFormat.PKCS8
    return ALGORITHMS[kind], key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


@contextlib.contextmanager
def _refusing(name: str, expected: str) -> Iterator[None]:
    """Whatever is raised within becomes one error: the libraries' own have no common base."""
    try:
        yield
    except Exception as error:
        got = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise SigningError(f"{name}: expected {expected}, got {got}") from error
