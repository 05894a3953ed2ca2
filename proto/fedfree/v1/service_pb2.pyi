from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ContributionHeader(_message.Message):
    __slots__ = ("manifest", "weights_bytes")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    weights_bytes: int
    def __init__(self, manifest: _Optional[bytes] = ..., weights_bytes: _Optional[int] = ...) -> None: ...

class ContributeRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ContributionHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ContributionHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ContributionState(_message.Message):
    __slots__ = ("contribution_sha256", "place", "reason")
    class Place(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PLACE_UNSPECIFIED: _ClassVar[ContributionState.Place]
        PLACE_RECEIVED: _ClassVar[ContributionState.Place]
        PLACE_ACCEPTED: _ClassVar[ContributionState.Place]
        PLACE_QUARANTINED: _ClassVar[ContributionState.Place]
    PLACE_UNSPECIFIED: ContributionState.Place
    PLACE_RECEIVED: ContributionState.Place
    PLACE_ACCEPTED: ContributionState.Place
    PLACE_QUARANTINED: ContributionState.Place
    CONTRIBUTION_SHA256_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    contribution_sha256: bytes
    place: ContributionState.Place
    reason: str
    def __init__(self, contribution_sha256: _Optional[bytes] = ..., place: _Optional[_Union[ContributionState.Place, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ContributeResponse(_message.Message):
    __slots__ = ("contribution",)
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    contribution: ContributionState
    def __init__(self, contribution: _Optional[_Union[ContributionState, _Mapping]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("offset", "weights_sha256", "start_sha256")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    START_SHA256_FIELD_NUMBER: _ClassVar[int]
    offset: int
    weights_sha256: bytes
    start_sha256: bytes
    def __init__(self, offset: _Optional[int] = ..., weights_sha256: _Optional[bytes] = ..., start_sha256: _Optional[bytes] = ...) -> None: ...

class FetchHeader(_message.Message):
    __slots__ = ("manifest", "weights_bytes", "weights_sha256", "offset", "signature")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    weights_bytes: int
    weights_sha256: bytes
    offset: int
    signature: bytes
    def __init__(self, manifest: _Optional[bytes] = ..., weights_bytes: _Optional[int] = ..., weights_sha256: _Optional[bytes] = ..., offset: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: FetchHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[FetchHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("contribution_sha256",)
    CONTRIBUTION_SHA256_FIELD_NUMBER: _ClassVar[int]
    contribution_sha256: bytes
    def __init__(self, contribution_sha256: _Optional[bytes] = ...) -> None: ...

class LearningProgress(_message.Message):
    __slots__ = ("iteration", "of")
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    iteration: int
    of: int
    def __init__(self, iteration: _Optional[int] = ..., of: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("received", "accepted", "quarantined", "contribution", "progress", "meta_learner_sha256", "start_sha256", "further_start_sha256")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    META_LEARNER_SHA256_FIELD_NUMBER: _ClassVar[int]
    START_SHA256_FIELD_NUMBER: _ClassVar[int]
    FURTHER_START_SHA256_FIELD_NUMBER: _ClassVar[int]
    received: int
    accepted: int
    quarantined: int
    contribution: ContributionState
    progress: LearningProgress
    meta_learner_sha256: bytes
    start_sha256: bytes
    further_start_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, received: _Optional[int] = ..., accepted: _Optional[int] = ..., quarantined: _Optional[int] = ..., contribution: _Optional[_Union[ContributionState, _Mapping]] = ..., progress: _Optional[_Union[LearningProgress, _Mapping]] = ..., meta_learner_sha256: _Optional[bytes] = ..., start_sha256: _Optional[bytes] = ..., further_start_sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...
