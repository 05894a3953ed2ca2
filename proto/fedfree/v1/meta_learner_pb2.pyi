from fedfree.v1 import contribution_pb2 as _contribution_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Recipe(_message.Message):
    __slots__ = ("head", "steps", "learning_rate", "temperature", "mirror", "levels")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MIRROR_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    head: str
    steps: int
    learning_rate: float
    temperature: float
    mirror: bool
    levels: bool
    def __init__(self, head: _Optional[str] = ..., steps: _Optional[int] = ..., learning_rate: _Optional[float] = ..., temperature: _Optional[float] = ..., mirror: _Optional[bool] = ..., levels: _Optional[bool] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("contribution_sha256", "config_sha256", "seed", "software", "start_sha256", "public_images", "public_images_sha256")
    CONTRIBUTION_SHA256_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    START_SHA256_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_IMAGES_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_IMAGES_SHA256_FIELD_NUMBER: _ClassVar[int]
    contribution_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    config_sha256: bytes
    seed: int
    software: str
    start_sha256: bytes
    public_images: int
    public_images_sha256: bytes
    def __init__(self, contribution_sha256: _Optional[_Iterable[bytes]] = ..., config_sha256: _Optional[bytes] = ..., seed: _Optional[int] = ..., software: _Optional[str] = ..., start_sha256: _Optional[bytes] = ..., public_images: _Optional[int] = ..., public_images_sha256: _Optional[bytes] = ...) -> None: ...

class MetaLearner(_message.Message):
    __slots__ = ("protocol_version", "architecture", "num_classes", "input", "recipe", "provenance", "weights_sha256")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    architecture: _contribution_pb2.Architecture
    num_classes: int
    input: _contribution_pb2.InputSpec
    recipe: Recipe
    provenance: Provenance
    weights_sha256: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., architecture: _Optional[_Union[_contribution_pb2.Architecture, _Mapping]] = ..., num_classes: _Optional[int] = ..., input: _Optional[_Union[_contribution_pb2.InputSpec, _Mapping]] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., weights_sha256: _Optional[bytes] = ...) -> None: ...
