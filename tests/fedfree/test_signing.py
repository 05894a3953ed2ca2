"""Signatures over what is handed out: what holds, what does not, and who may follow whom."""

import pytest

from fedfree.errors import SignatureError
from fedfree.signing import make_key, public_key, read_signature, sign, succeed
from fedfree.v1 import signature_pb2

MANIFEST = b"a manifest"


def test_the_first_vector_of_rfc_8032_names_its_public_key() -> None:
    private = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    assert public_key(private) == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_a_signature_says_whose_it_is_and_its_number() -> None:
    key = make_key()
    signed = read_signature("start", MANIFEST, sign("start", MANIFEST, key, 7))
    assert (signed.key, signed.number, signed.successions) == (public_key(key), 7, ())
    assert signed.follows(public_key(key)) and not signed.follows(public_key(make_key()))


@pytest.mark.parametrize("field", ["key", "number", "signature", "manifest", "what"])
def test_a_signature_over_anything_else_does_not_hold(field: str) -> None:
    message = signature_pb2.Signature.FromString(sign("start", MANIFEST, make_key(), 7))
    if field == "number":
        message.number = 8
    elif field in ("key", "signature"):
        value = bytearray(getattr(message, field))
        value[0] ^= 1
        setattr(message, field, bytes(value))
    manifest = b"another" if field == "manifest" else MANIFEST
    with pytest.raises(SignatureError, match="does not hold for the"):
        read_signature("meta-learner" if field == "what" else "start", manifest, message.SerializeToString())


@pytest.mark.parametrize(
    ("signature", "words"),
    [(b"", "is not signed"), (b"\xff", "is none"), (bytes(1 << 17), "is none"), (b"\x0a\x01x", "hold")],
)
def test_what_is_no_signature_is_refused(signature: bytes, words: str) -> None:
    with pytest.raises(SignatureError, match=words):
        read_signature("start", MANIFEST, signature)


def test_a_new_key_is_followed_from_every_earlier_one_and_from_no_other() -> None:
    first, second, third = (make_key() for _ in range(3))
    links = [succeed(first, public_key(second)), succeed(second, public_key(third))]
    signed = read_signature("start", MANIFEST, sign("start", MANIFEST, third, 1, links))
    assert [signed.follows(public_key(each)) for each in (first, second, third)] == [True] * 3
    old = read_signature("start", MANIFEST, sign("start", MANIFEST, first, 1, links))
    assert not old.follows(public_key(third)), "who was replaced is not followed any more"


def test_nobody_appoints_himself_the_successor_of_another() -> None:
    key, thief = make_key(), make_key()
    link = signature_pb2.Succession.FromString(succeed(thief, public_key(thief)))
    link.key = bytes.fromhex(public_key(key))
    forged = sign("start", MANIFEST, thief, 9, [link.SerializeToString()])
    with pytest.raises(SignatureError, match="does not hold for the key"):
        read_signature("start", MANIFEST, forged)
