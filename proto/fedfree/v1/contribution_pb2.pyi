from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Architecture(_message.Message):
    __slots__ = ("id", "width", "norm")
    ID_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    id: str
    width: int
    norm: str
    def __init__(self, id: _Optional[str] = ..., width: _Optional[int] = ..., norm: _Optional[str] = ...) -> None: ...

class InputSpec(_message.Message):
    __slots__ = ("channels", "height", "width", "mean", "std", "horizontal_flip")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    HORIZONTAL_FLIP_FIELD_NUMBER: _ClassVar[int]
    channels: int
    height: int
    width: int
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    horizontal_flip: bool
    def __init__(self, channels: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., horizontal_flip: _Optional[bool] = ...) -> None: ...

class PrivacyStatement(_message.Message):
    __slots__ = ("status",)
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[PrivacyStatement.Status]
        STATUS_NONE: _ClassVar[PrivacyStatement.Status]
        STATUS_EMPIRICAL_ONLY: _ClassVar[PrivacyStatement.Status]
        STATUS_DP: _ClassVar[PrivacyStatement.Status]
    STATUS_UNSPECIFIED: PrivacyStatement.Status
    STATUS_NONE: PrivacyStatement.Status
    STATUS_EMPIRICAL_ONLY: PrivacyStatement.Status
    STATUS_DP: PrivacyStatement.Status
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: PrivacyStatement.Status
    def __init__(self, status: _Optional[_Union[PrivacyStatement.Status, str]] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("protocol_version", "architecture", "num_classes", "input", "privacy", "weights_sha256")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    architecture: Architecture
    num_classes: int
    input: InputSpec
    privacy: PrivacyStatement
    weights_sha256: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., architecture: _Optional[_Union[Architecture, _Mapping]] = ..., num_classes: _Optional[int] = ..., input: _Optional[_Union[InputSpec, _Mapping]] = ..., privacy: _Optional[_Union[PrivacyStatement, _Mapping]] = ..., weights_sha256: _Optional[bytes] = ...) -> None: ...
