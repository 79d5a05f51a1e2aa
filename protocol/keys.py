"""Who is who on the link: CURVE key pairs, their files, and what two people compare when they pair machines.

A public key is 40 characters of Z85, as ZeroMQ has it. Private files are 0600 in a folder that is 0700.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zmq
from zmq.utils import z85

from protocol.errors import RoverError
from protocol.files import sync_folder

if TYPE_CHECKING:
    from pathlib import Path

NONCE_BYTES = 32
CODE_DIGITS = 6
MAX_FILE_BYTES = 4 << 20
_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_FIELD_PRIME = 2**255 - 19
_SMALL_ORDER = {
    0,
    1,
    _FIELD_PRIME - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
}
"""Points of Curve25519 whose product with every secret is known: whoever is let in by one of them needs no secret."""


class KeyFileError(RoverError):
    """A key file is damaged, or others could read or change it; nothing starts until somebody has looked at it."""


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, both halves in Z85; the secret does not show in ``repr``, hence in no log."""

    public: str
    secret: str = field(repr=False)


def load_or_make(path: Path) -> KeyPair:
    """Return the key pair of a file; at the first start it is made, on disk before it is used.

    Raises:
        KeyFileError: the file or its folder is open to others, not ours, or damaged; the message has the remedy.

    """
    _make_folder(path.parent)
    content = read_private(path)
    if content is None:
        pair = _make_pair()
        made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        values = {"public": pair.public, "secret": pair.secret, "made_at": made_at}
        if write_private(path, json.dumps(values).encode(), replace=False):
            return pair
        content = read_private(path)  # another process was first: its key counts
    try:
        values = json.loads(content or b"")
        pair = KeyPair(str(values["public"]), str(values["secret"]))
        is_whole = zmq.curve_public(pair.secret.encode("ascii")).decode() == pair.public
    except (ValueError, KeyError, TypeError, zmq.ZMQError):  # whose text might quote the secret
        is_whole = False
    if not is_whole:
        hint = "move it away to make a new key, and pair again"
        raise KeyFileError(f"{path}: no key pair; {hint}") from None
    return pair


def valid_public(text: str) -> bool:
    """Return True for a Z85 public key that can belong to a secret."""
    if not _Z85.fullmatch(text):
        return False
    try:
        raw = z85.decode(text)
    except Exception:  # noqa: BLE001 - a group above 2**32 fails in struct
        return False
    point = int.from_bytes(raw, "little") & (1 << 255) - 1  # the uppermost bit does not count (RFC 7748)
    return point % _FIELD_PRIME not in _SMALL_ORDER


def fingerprint(public: str) -> str:
    """Return 80 bits of a public key's hash for people to compare, such as ``JBSW-Y3DP-EHPK-3PXP``."""
    text = base64.b32encode(hashlib.sha256(public.encode()).digest()[:10]).decode()
    return "-".join(text[i : i + 4] for i in range(0, 16, 4))


def short_code(rover_id: str, rover_public: str, trainer_public: str, rover_nonce: bytes, trainer_nonce: bytes) -> str:
    """Return the code that both machines of a pairing compute, such as ``417-902``.

    It is the same at both only if they saw the same keys. Somebody in the middle must choose his nonces before he
    can know either code, because the rover has committed to its own; so each try of his succeeds once in a million.

    Source: Vaudenay 2005, Secure Communications over Insecure Channels Based on Short Authenticated Strings.
    """
    texts = (rover_id.encode(), rover_public.encode(), trainer_public.encode(), rover_nonce, trainer_nonce)
    number = int.from_bytes(_digest(b"roverloop pair code 1", *texts), "big") % 10**CODE_DIGITS
    digits = f"{number:0{CODE_DIGITS}d}"
    return f"{digits[:3]}-{digits[3:]}"


def commit(nonce: bytes, public: str) -> bytes:
    """Return 32 bytes that fix a nonce and its owner's key without telling the nonce."""
    return _digest(b"roverloop pair commit 1", nonce, public.encode())


def read_private(path: Path) -> bytes | None:
    """Return the content of a file that only its owner may read, or None where there is none.

    Raises:
        KeyFileError: others could read or change it, or it cannot be read.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hang the start
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise KeyFileError(f"{path}: not a file; remove it")
        if about.st_uid not in {os.geteuid(), 0}:
            raise KeyFileError(f"{path}: belongs to user {about.st_uid}; chown {os.geteuid()} {path}")
        if about.st_mode & 0o077:
            mode = f"{about.st_mode & 0o777:o}"
            raise KeyFileError(f"{path}: others may read or change it (mode {mode}); chmod 600 {path}")
        if about.st_size > MAX_FILE_BYTES:
            raise KeyFileError(f"{path}: {about.st_size} bytes, at most {MAX_FILE_BYTES} were expected; move it away")
        return file.read()


def write_private(path: Path, content: bytes, *, replace: bool = True) -> bool:
    """Write a file of mode 0600 so that it becomes visible whole; without ``replace`` an existing one stays.

    Returns:
        True, or False where one was there and stayed.

    Raises:
        KeyFileError: the disk refuses.

    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                try:
                    os.link(temporary, path)  # unlike a rename it fails where another process was first
                except FileExistsError:
                    return False
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        text = f"cannot be written: {error.strerror or error}; mend the disk or the folder"
        raise KeyFileError(f"{path}: {text}") from error
    return True


def _make_pair() -> KeyPair:
    while True:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        if not public.startswith("-"):  # a command line would take it for an option
            return KeyPair(public, secret)


def _make_folder(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            sync_folder(folder.parent)
        mode = folder.stat().st_mode
    except OSError as error:
        raise KeyFileError(f"{folder}: {error.strerror or error}; the folder of the keys must be writable") from error
    if mode & 0o077:
        raise KeyFileError(f"{folder}: others may look into it (mode {mode & 0o777:o}); chmod 700 {folder}")


def _digest(purpose: bytes, *parts: bytes) -> bytes:
    """Hash parts with their lengths, so that no two different lists hash alike."""
    digest = hashlib.sha256()
    for part in (purpose, *parts):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()
