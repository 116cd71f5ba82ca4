"""Who vouches for a package: Ed25519 signatures beside its manifest.

What is signed is the digest of every manifest in the package, its own and those of its stages; these seal all files by
digest, so a signature covers each byte that a command reads. It lies beside the manifest and changes nothing in it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit._files import storage, write_atomic
from edgekit._lazy import require
from edgekit.contents import digests, manifests, strangers
from edgekit.errors import SignatureError, UsageError
from edgekit.package import SIGNATURE, Package

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SCHEMA = 1
MAX_BYTES = 1 << 20
_SHOWN = 16


class KeySignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key's signature. `key`: fingerprint, SHA-256 of the public key in DER form (hex); `signature`: base64."""

    key: str
    signature: str


class Signatures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """signature.json: the manifests that were signed, by path, with their SHA-256, and a signature for each key."""

    schema: int
    manifests: dict[str, str]
    signatures: tuple[KeySignature, ...]


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """What a package's signature says, unchecked. `fits` False: the package was changed since it was signed."""

    keys: tuple[str, ...]
    fits: bool


def statement(found: Mapping[str, str]) -> bytes:
    """The bytes that a key signs, for manifests given as path -> SHA-256."""
    lines = ["edgekit package signature 1", *(f"{digest}  {name}" for name, digest in sorted(found.items()))]
    return "\n".join(lines).encode() + b"\n"


def short(fingerprint: str) -> str:
    """A fingerprint as people compare it: its first 16 digits."""
    return fingerprint[:_SHOWN]


def new_key(path: Path) -> str:
    """Make a key pair: the private key at `path` (mode 600), the public one at `path`.pub, both PEM.

    Returns the fingerprint.

    Raises:
        UsageError: one of the files exists.
        StorageError: they cannot be written.
    """
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", why="make a key pair")
    forms = require("cryptography.hazmat.primitives.serialization", why="make a key pair")
    public_path = path.with_name(path.name + ".pub")
    for there in (path, public_path):
        if there.exists():
            raise UsageError(f"'{there}' exists, and a key that is overwritten is lost. Choose another name.")
    key: Ed25519PrivateKey = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    public = key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    with storage(path):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        write_atomic(public_path, public)
    return fingerprint_of(key.public_key())


def sign(package: Package, key_file: Path) -> str:
    """Sign `package` as it is now, every file checked; returns the fingerprint of the key.

    Signatures of other keys for the same content stay; those for an earlier content go.

    Raises:
        UsageError: no private Ed25519 key in `key_file`.
        IntegrityError: a file of the package is not what its manifest says, or is in no manifest.
        StorageError: the signature cannot be written.
    """
    key = _private_key(key_file)
    fingerprint = fingerprint_of(key.public_key())
    _pin(package)
    _refuse_strangers(package)
    for own in (package, *(own for _, own in package.stages())):
        for name in own.manifest.all_files():
            own.file(name)
    found = digests(manifests(package))
    made = KeySignature(key=fingerprint, signature=base64.b64encode(key.sign(statement(found))).decode())
    before = _read(package)
    others = before.signatures if before is not None and before.manifests == found else ()
    kept = (*(s for s in others if s.key != fingerprint), made)
    text = msgspec.json.format(msgspec.json.encode(Signatures(schema=SCHEMA, manifests=found, signatures=kept)))
    with storage(package.path / SIGNATURE):
        write_atomic(package.path / SIGNATURE, text + b"\n")
    return fingerprint


def signed(package: Package) -> Signed | None:
    """What the package's signature says, without checking it; None for a package without one."""
    found = _read(package)
    if found is None:
        return None
    return Signed(keys=tuple(s.key for s in found.signatures), fits=found.manifests == digests(manifests(package)))


class TrustedKeys:
    """Public keys, and packages judged by them. `files` are PEM files, read now and by `reload`."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Raises UsageError: a file is no public Ed25519 key."""
        self._files = tuple(files)
        self._keys: Mapping[str, Ed25519PublicKey] = {}
        self.reload()

    def reload(self) -> None:
        """Read the files again. Raises UsageError, and keeps the keys as they were."""
        self._keys = {fingerprint_of(key): key for key in map(_public_key, self._files)}

    def check(self, package: Package) -> str:
        """The fingerprint of the trusted key that signed `package` as it was opened; its stages are held to that too.

        Raises:
            SignatureError: there is none, the package was changed since, or it holds files that nobody signed.
        """
        _pin(package)
        data = _bytes(package)
        if data is None:
            raise unsigned(package.path.name)
        fingerprint = self.check_bytes(data, digests(manifests(package)), where=package.path.name)
        _refuse_strangers(package)
        return fingerprint

    def check_bytes(self, data: bytes, found: Mapping[str, str], *, where: str) -> str:
        """As `check`, for the bytes of a signature.json and the SHA-256 of the manifests of a package called `where`.

        Raises SignatureError.
        """
        invalid = require("cryptography.exceptions", why="check signatures").InvalidSignature
        stated = _decode(data, where=where)
        if stated.manifests != found:
            name = next(n for n in sorted({*found, *stated.manifests}) if found.get(n) != stated.manifests.get(n))
            raise SignatureError(
                f"'{where}' was changed after it was signed: {name} is another one now, as after adding a variant. "
                "If that was meant, sign again: edgekit sign X.edge --key KEY"
            )
        mine = [s for s in stated.signatures if s.key in self._keys]
        if not mine:
            others = ", ".join(short(s.key) for s in stated.signatures) or "nobody"
            raise SignatureError(
                f"'{where}' is signed by {others}, trusted here is {', '.join(map(short, self._keys))}. "
                "Give that key's public half, or sign with a trusted key."
            )
        for one in mine:
            try:
                self._keys[one.key].verify(base64.b64decode(one.signature, validate=True), statement(found))
            except (invalid, ValueError):
                raise SignatureError(
                    f"The signature of '{where}' by {short(one.key)} is false: that key did not sign this package. "
                    "Do not use it."
                ) from None
        return mine[0].key


def unsigned(where: str) -> SignatureError:
    """The error for a package called `where` that carries no signature."""
    return SignatureError(f"'{where}' is not signed. Sign it where it was made: edgekit sign X.edge --key KEY")


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """SHA-256 of the public key in DER form, as `openssl pkey -pubin -outform der | sha256sum` gives it."""
    forms = require("cryptography.hazmat.primitives.serialization", why="read keys")
    der: bytes = key.public_bytes(forms.Encoding.DER, forms.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _pin(package: Package) -> None:
    package.pinned = {stage.package: own.manifest.digest for stage, own in package.stages()}


def _refuse_strangers(package: Package) -> None:
    found = strangers(package)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise SignatureError(
            f"'{found[0]}'{more} in '{package.path.name}' is no part of the package, so no signature covers it. "
            "Remove it."
        )


def _bytes(package: Package) -> bytes | None:
    try:
        with (package.path / SIGNATURE).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SignatureError(
            f"The signature of '{package.path.name}' cannot be read ({error.strerror}). Check its permissions."
        ) from error


def _read(package: Package) -> Signatures | None:
    data = _bytes(package)
    return None if data is None else _decode(data, where=package.path.name)


def _decode(data: bytes, *, where: str) -> Signatures:
    try:
        if len(data) > MAX_BYTES:
            raise msgspec.DecodeError("it is too large")
        found = msgspec.json.decode(data, type=Signatures)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SignatureError(
            f"{SIGNATURE} of '{where}' cannot be read ({error}). Sign again: edgekit sign X.edge --key KEY"
        ) from error
    if found.schema != SCHEMA:
        raise SignatureError(
            f"{SIGNATURE} of '{where}' has schema {found.schema}, this edgekit reads {SCHEMA}. Upgrade edgekit."
        )
    return found


def _private_key(path: Path) -> Ed25519PrivateKey:
    forms = require("cryptography.hazmat.primitives.serialization", why="sign packages")
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", why="sign packages")
    data = _pem(path)
    try:
        key: Any = forms.load_pem_private_key(data, password=None)
    except TypeError:
        raise UsageError(f"Key '{path}' has a password. Give one without: openssl pkey -in {path} -out KEY") from None
    except Exception as error:  # ValueError, UnsupportedAlgorithm, and what OpenSSL adds to them
        raise UsageError(
            f"'{path}' holds no private key in PEM form. Make a pair with: edgekit sign --new-key FILE"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"The key in '{path}' is not Ed25519. Make a pair with: edgekit sign --new-key FILE")
    found: Ed25519PrivateKey = key
    return found


def _public_key(path: Path) -> Ed25519PublicKey:
    forms = require("cryptography.hazmat.primitives.serialization", why="check signatures")
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", why="check signatures")
    data = _pem(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(f"'{path}' is a private key, which stays where packages are signed. Give its .pub file.")
    try:
        key: Any = forms.load_pem_public_key(data)
    except Exception as error:
        raise UsageError(
            f"'{path}' holds no public key in PEM form; expected the .pub file that edgekit sign --new-key made."
        ) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UsageError(f"The key in '{path}' is not Ed25519; expected what edgekit sign --new-key made.")
    found: Ed25519PublicKey = key
    return found


def _pem(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise UsageError(f"Key '{path}' cannot be read ({error.strerror}). Check the path.") from error
