"""What a safetensors file says it holds, read and checked before anything is allocated for its tensors."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fedfree.errors import ContributionError, printable
from fedfree.rule import rule

MAX_HEADER_BYTES = 1 << 20
"""A network of a thousand tensors takes a tenth of it."""
_ALIGNMENT = 8
_PREFIX_BYTES = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Described(NamedTuple):
    """A tensor that has not been read."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int
    """Where its bytes lie, from the end of the header on."""


@rule("weights-header")
def read_header(weights: bytes, what: str) -> dict[str, Described]:
    """The safetensors header takes at most 1 MiB, says only name, type, shape and place of every tensor, as
    safetensors writes it, and the tensors fill the rest without a gap: no metadata, nothing unseen.

    Raises:
        ContributionError: anything else.
    """
    length = int.from_bytes(weights[:_PREFIX_BYTES], "little")
    if len(weights) < _PREFIX_BYTES or length > min(MAX_HEADER_BYTES, len(weights) - _PREFIX_BYTES):
        raise ContributionError(
            f"{what} are not valid safetensors: {len(weights)} bytes, with a header of {length}"
        )
    text = weights[_PREFIX_BYTES : _PREFIX_BYTES + length]
    header = _parsed(text, what)
    if "__metadata__" in header:
        raise ContributionError(
            f"{what} hold metadata beside their tensors: save the tensors alone, without metadata"
        )
    described = {name: _described(name, entry, what) for name, entry in header.items()}
    _check_places(described, len(weights) - _PREFIX_BYTES - length, what)
    plain = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if text.rstrip(b" ") != plain or length - len(plain) >= _ALIGNMENT:
        raise ContributionError(f"{what} have a header that safetensors does not write: save them with it")
    return described


def _parsed(text: bytes, what: str) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_once_each)
        text.decode().encode()  # json also takes what is not UTF-8
    except (ValueError, RecursionError) as error:
        raise ContributionError(f"{what} are not valid safetensors: their header is no JSON") from error
    if not isinstance(header, dict):
        raise ContributionError(f"{what} are not valid safetensors: their header is no JSON object")
    return header


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name stands there twice")
    return members


def _described(name: str, entry: Any, what: str) -> Described:
    """One entry of a header; raises ContributionError."""
    shown = repr(printable(name, 100))
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ContributionError(
            f"{what} are not valid safetensors: tensor {shown} lacks type, shape or place"
        )
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ContributionError(f"tensor {shown} is of an unknown type, {printable(repr(dtype), 40)}")
    if not (_are_sizes(shape) and len(shape) <= 8 and _are_sizes(place) and len(place) == 2):
        raise ContributionError(f"{what} are not valid safetensors: tensor {shown} has no shape or place")
    return Described(_DTYPES[dtype], tuple(shape), *place)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(each) is int and 0 <= each < 1 << 40 for each in values)


def _check_places(described: Mapping[str, Described], size: int, what: str) -> None:
    """Refuse tensors whose bytes do not lie one after the other, each as long as its shape, to the end."""
    end = 0
    for name, each in sorted(described.items(), key=lambda item: item[1][2:]):
        length = each.dtype.itemsize
        for side in each.shape:
            length *= side
        if each.begin != end or each.end != end + length:
            raise ContributionError(
                f"{what} are not valid safetensors: tensor {printable(name, 100)!r} does not lie in its place"
            )
        end = each.end
    if end != size:
        raise ContributionError(f"{what} are not valid safetensors: {end} bytes of tensors, and {size} came")
