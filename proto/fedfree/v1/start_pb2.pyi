from fedfree.v1 import contribution_pb2 as _contribution_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Start(_message.Message):
    __slots__ = ("protocol_version", "architecture", "weights_sha256", "input", "source", "licence")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    architecture: _contribution_pb2.Architecture
    weights_sha256: bytes
    input: _contribution_pb2.InputSpec
    source: str
    licence: str
    def __init__(self, protocol_version: _Optional[int] = ..., architecture: _Optional[_Union[_contribution_pb2.Architecture, _Mapping]] = ..., weights_sha256: _Optional[bytes] = ..., input: _Optional[_Union[_contribution_pb2.InputSpec, _Mapping]] = ..., source: _Optional[str] = ..., licence: _Optional[str] = ...) -> None: ...
