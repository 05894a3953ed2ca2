from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Succession(_message.Message):
    __slots__ = ("key", "next", "signature")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    next: bytes
    signature: bytes
    def __init__(self, key: _Optional[bytes] = ..., next: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("key", "number", "signature", "succession")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SUCCESSION_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    number: int
    signature: bytes
    succession: _containers.RepeatedCompositeFieldContainer[Succession]
    def __init__(self, key: _Optional[bytes] = ..., number: _Optional[int] = ..., signature: _Optional[bytes] = ..., succession: _Optional[_Iterable[_Union[Succession, _Mapping]]] = ...) -> None: ...
