"""What a coordinator hands out is signed, so that an organisation knows it from what anybody else made.

Ed25519 (RFC 8032) over the manifest, which holds the hash of the weights. A key is its own name: 64
hexadecimal digits. A coordinator that takes another key signs that one with the old, so whoever knows the old
one can follow; the number of a signature grows, so what is older can be told from what is newer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from fedfree.codec import sha256
from fedfree.errors import SignatureError
from fedfree.v1 import signature_pb2 as schema

What = Literal["meta-learner", "start"]

KEY_PATTERN = "^[0-9a-f]{64}$"
MAX_SIGNATURE_BYTES = 1 << 16
"""Some 400 successions."""


@dataclass(frozen=True)
class Signed:
    """A signature that holds."""

    key: str
    """By which key, hexadecimal."""
    number: int
    """Larger for what was published later."""
    successions: tuple[tuple[str, str], ...] = ()
    """Every earlier key and the one that it was replaced by, which it has signed; hexadecimal."""

    def follows(self, known: str) -> bool:
        """Whether the key is the one that is known, or leads back to it."""
        reached = {known}
        for _ in self.successions:
            reached |= {new for old, new in self.successions if old in reached}
        return self.key in reached


def make_key() -> str:
    """A new private key, hexadecimal, from the operating system's randomness."""
    return Ed25519PrivateKey.generate().private_bytes_raw().hex()


def public_key(private: str) -> str:
    """What others know a private key by, hexadecimal."""
    return _private(private).public_key().public_bytes_raw().hex()


def sign(what: What, manifest: bytes, private: str, number: int, successions: Iterable[bytes] = ()) -> bytes:
    """A signature over a manifest, as it travels beside it.

    Args:
        number: larger than that of everything this coordinator published before.
        successions: from each earlier key, as :func:`succeed` made them.
    """
    key = public_key(private)
    return schema.Signature(
        key=bytes.fromhex(key),
        number=number,
        signature=_private(private).sign(_statement(what, manifest, number)),
        succession=[schema.Succession.FromString(each) for each in successions],
    ).SerializeToString(deterministic=True)


def succeed(private: str, following: str) -> bytes:
    """What an old private key says of the public key that takes its place."""
    key = public_key(private)
    return schema.Succession(
        key=bytes.fromhex(key),
        next=bytes.fromhex(following),
        signature=_private(private).sign(_succession(key, following)),
    ).SerializeToString(deterministic=True)


def read_signature(what: What, manifest: bytes, signature: bytes) -> Signed:
    """Check a signature over a manifest, whoever made it; whose key it is, the caller must know.

    Raises:
        SignatureError: there is none, or it is one over something else.
    """
    if not signature:
        raise SignatureError(
            f"the {what} is not signed: ask the coordinator to publish it again with this release of fedfree"
        )
    message = schema.Signature()
    try:
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise DecodeError
        message.ParseFromString(signature)
    except DecodeError as error:
        raise SignatureError(f"what came as the signature of the {what} is none") from error
    key = message.key.hex()
    _verify(key, message.signature, _statement(what, manifest, message.number), f"the {what}")
    for each in message.succession:
        old, new = each.key.hex(), each.next.hex()
        _verify(old, each.signature, _succession(old, new), f"the key {new} that followed")
    return Signed(
        key, message.number, tuple((each.key.hex(), each.next.hex()) for each in message.succession)
    )


def _verify(key: str, signature: bytes, statement: bytes, what: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(
            f"the signature by the key {key} does not hold for {what}: one of them was changed on its way, "
            "so fetch it again, and where that does not help, ask the coordinator"
        ) from error


def _statement(what: What, manifest: bytes, number: int) -> bytes:
    return f"fedfree {what} {number} {sha256(manifest)}".encode()


def _succession(key: str, following: str) -> bytes:
    return f"fedfree key {key} {following}".encode()


def _private(private: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
