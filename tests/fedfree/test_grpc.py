"""What both ends of the gRPC door agree on: addresses, sizes, and the table of errors."""

import grpc
import pytest

from fedfree import errors
from fedfree.errors import AccessError, ConfigError, ContributionError, FederationError, FedFreeError
from fedfree.grpc_status import MAX_DETAIL_CHARACTERS, TOLD, error_of, status_of
from fedfree.host.channel import CHUNK_BYTES, MAX_MESSAGE_BYTES, Address, chunks
from fedfree.v1.service_pb2 import ContributeRequest, FetchResponse


class Failure(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


@pytest.mark.parametrize(
    ("text", "host", "port", "is_loopback"),
    [
        ("localhost:9443", "localhost", 9443, True),
        ("127.0.0.2:0", "127.0.0.2", 0, True),
        ("[::1]:9443", "::1", 9443, True),
        ("[2001:db8::1]:9443", "2001:db8::1", 9443, False),
        ("0.0.0.0:1", "0.0.0.0", 1, False),
        ("coordinator.example:443", "coordinator.example", 443, False),
        ("localhost.example:443", "localhost.example", 443, False),
    ],
)
def test_an_address_is_read_as_it_is_written(text: str, host: str, port: int, is_loopback: bool) -> None:
    address = Address.parse(text)
    assert address == Address(host, port)
    assert str(address) == text
    assert address.is_loopback == is_loopback


@pytest.mark.parametrize(
    "text",
    [
        *("", "localhost", ":9443", "localhost:", "localhost:https", "::1:9443", "a:65536"),
        *("..:1", f"{'a' * 64}:1", "../a:1", " localhost:1", "a\n:1", "\udcff:1"),
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT, for instance localhost:9443"):
        Address.parse(text)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_chunks_are_the_whole_and_each_fits_into_a_message(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    pieces = list(chunks(data[:size]))
    assert b"".join(pieces) == data[:size]
    for piece in pieces:
        assert ContributeRequest(chunk=piece).ByteSize() < MAX_MESSAGE_BYTES
        assert FetchResponse(chunk=piece).ByteSize() < MAX_MESSAGE_BYTES


@pytest.mark.parametrize("kind", TOLD)
def test_an_error_comes_out_at_the_other_side_as_it_went_in(kind: type[FedFreeError]) -> None:
    received = error_of(Failure(status_of(kind("why")), "why"))
    assert (type(received), str(received)) == (kind, "why")


def test_a_narrower_error_is_told_as_the_kind_it_is() -> None:
    assert status_of(errors.StartError("why")) == status_of(ContributionError("why"))


def test_what_concerns_one_side_alone_is_not_told() -> None:
    assert not {errors.ConfigError, errors.DataError} & set(TOLD)


@pytest.mark.parametrize("details", ["boom", "", None])
def test_any_other_status_is_a_failed_federation(details: str | None) -> None:
    received = error_of(Failure(grpc.StatusCode.INTERNAL, details))
    assert isinstance(received, FederationError)
    assert "INTERNAL" in str(received)


def test_another_partys_words_are_cut_to_one_short_line() -> None:
    received = error_of(Failure(grpc.StatusCode.INVALID_ARGUMENT, "\x1b[2J\n" + "x" * 9999))
    assert isinstance(received, ContributionError)
    assert str(received).isprintable()
    assert len(str(received)) <= MAX_DETAIL_CHARACTERS


def test_a_certificate_that_is_refused_is_told_from_a_server_that_is_away() -> None:
    away = error_of(Failure(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; refused"))
    assert type(away) is FederationError
    refused = error_of(Failure(grpc.StatusCode.UNAVAILABLE, "x: CERTIFICATE_VERIFY_FAILED: self signed"))
    assert type(refused) is AccessError
