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
    __slots__ = ("status", "differential_privacy", "initial_weights")
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
    DIFFERENTIAL_PRIVACY_FIELD_NUMBER: _ClassVar[int]
    INITIAL_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    status: PrivacyStatement.Status
    differential_privacy: DifferentialPrivacy
    initial_weights: InitialWeights
    def __init__(self, status: _Optional[_Union[PrivacyStatement.Status, str]] = ..., differential_privacy: _Optional[_Union[DifferentialPrivacy, _Mapping]] = ..., initial_weights: _Optional[_Union[InitialWeights, _Mapping]] = ...) -> None: ...

class InitialWeights(_message.Message):
    __slots__ = ("sha256", "public")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    public: bool
    def __init__(self, sha256: _Optional[bytes] = ..., public: _Optional[bool] = ...) -> None: ...

class DifferentialPrivacy(_message.Message):
    __slots__ = ("mechanism", "epsilon", "delta", "noise_multiplier", "sampling_rate", "steps", "max_grad_norm", "images", "images_rounded_to", "accountant", "software", "composition")
    class Mechanism(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MECHANISM_UNSPECIFIED: _ClassVar[DifferentialPrivacy.Mechanism]
        MECHANISM_DP_SGD_POISSON: _ClassVar[DifferentialPrivacy.Mechanism]
    MECHANISM_UNSPECIFIED: DifferentialPrivacy.Mechanism
    MECHANISM_DP_SGD_POISSON: DifferentialPrivacy.Mechanism
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_RATE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_ROUNDED_TO_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTANT_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    COMPOSITION_FIELD_NUMBER: _ClassVar[int]
    mechanism: DifferentialPrivacy.Mechanism
    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    max_grad_norm: float
    images: int
    images_rounded_to: int
    accountant: str
    software: str
    composition: Composition
    def __init__(self, mechanism: _Optional[_Union[DifferentialPrivacy.Mechanism, str]] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., noise_multiplier: _Optional[float] = ..., sampling_rate: _Optional[float] = ..., steps: _Optional[int] = ..., max_grad_norm: _Optional[float] = ..., images: _Optional[int] = ..., images_rounded_to: _Optional[int] = ..., accountant: _Optional[str] = ..., software: _Optional[str] = ..., composition: _Optional[_Union[Composition, _Mapping]] = ...) -> None: ...

class Composition(_message.Message):
    __slots__ = ("epsilon", "contributions", "without_differential_privacy", "epsilon_budget")
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_DIFFERENTIAL_PRIVACY_FIELD_NUMBER: _ClassVar[int]
    EPSILON_BUDGET_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    contributions: int
    without_differential_privacy: int
    epsilon_budget: float
    def __init__(self, epsilon: _Optional[float] = ..., contributions: _Optional[int] = ..., without_differential_privacy: _Optional[int] = ..., epsilon_budget: _Optional[float] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("protocol_version", "architecture", "num_classes", "input", "privacy", "weights_sha256", "start_sha256")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    START_SHA256_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    architecture: Architecture
    num_classes: int
    input: InputSpec
    privacy: PrivacyStatement
    weights_sha256: bytes
    start_sha256: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., architecture: _Optional[_Union[Architecture, _Mapping]] = ..., num_classes: _Optional[int] = ..., input: _Optional[_Union[InputSpec, _Mapping]] = ..., privacy: _Optional[_Union[PrivacyStatement, _Mapping]] = ..., weights_sha256: _Optional[bytes] = ..., start_sha256: _Optional[bytes] = ...) -> None: ...
