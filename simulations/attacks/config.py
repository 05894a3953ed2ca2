"""What an audit is configured with."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from client.config import PrivacyConfig, TrainingConfig, check_training, implied_training, training_from
from client.rehearsing.rehearse import CANARY_FRACTION, MIN_SHADOWS
from fedfree.host.places import cache_folder
from fedfree.host.starts import load_start
from fedfree.settings import Layer, Settings, Values
from fedfree.start import LoadedStart
from server.config import ServerConfig
from simulations.config import describe
from simulations.federation.starts import find_start


class AuditConfig(Settings):
    """One organisation's images, and everything that is made of its models to be attacked."""

    dataset: str = "glyphs"
    """glyphs, omniglot, cifar-fs, or the path of an image folder or zip."""
    start: str | None = None
    """Public weights to begin from, such as efficientnet-lite0, or the folder of a start; random weights by
    default."""
    classes: Annotated[int, Field(ge=2)] = 5
    """Of the organisation."""
    images_per_class: Annotated[int, Field(ge=4)] = 480
    """At most."""
    shadows: Annotated[int, Field(ge=MIN_SHADOWS)] = 16
    """Models, each trained on a half of the images; each is the target once, the others are its shadows."""
    canary_fraction: Annotated[float, Field(gt=0, lt=1)] = CANARY_FRACTION
    """Share of the images that get a wrong label."""
    training: TrainingConfig = TrainingConfig()
    """Of each model; the servers compute on the CPU."""
    privacy: PrivacyConfig = PrivacyConfig()
    """Of each model's training; by default without differential privacy."""
    student_iterations: Annotated[int, Field(ge=1)] = 20
    """Of the inversion of each model; every one adds 100 images."""
    student_steps: Annotated[int, Field(ge=1)] = 200
    """Of the student that learns from these images."""
    meta_learner: Annotated[int, Field(ge=0)] = 0
    """For how many of the models a small federation is run, to attack its meta-learner; 0 leaves it out."""
    companions: Annotated[int, Field(ge=1)] = 3
    """Other organisations of such a federation, the same in each."""
    meta_learner_iterations: Annotated[int, Field(ge=1)] = 10
    """Of such a federation's server."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides everything random."""
    cache: Path = Field(default_factory=cache_folder)
    """Folder for data sets; by default ``~/.cache/fedfree``."""

    @classmethod
    def implied(cls, given: Values) -> Layer:
        """A start brings its network, differential privacy an architecture that it can train."""
        if start := given.get("start"):
            return training_from(str(start), *describe(str(start)), given)
        return implied_training(given)

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        check_training(self.training, self.privacy)
        return self

    @field_validator("meta_learner")
    @classmethod
    def _leave_shadows(cls, value: int) -> int:
        if 0 < value < MIN_SHADOWS:
            raise ValueError(f"attacking the meta-learner needs at least {MIN_SHADOWS} federations")
        return value

    @property
    def starts(self) -> list[str]:
        """What ``start`` names: one, or none for random weights."""
        return [self.start] if self.start else []

    def begun(self) -> Self:
        """The same with the start made, in the folder where training finds it."""
        training = self.training.model_copy(update={"start": find_start(self)})
        return self.model_copy(update={"training": training}) if self.start else self

    def loaded_start(self) -> LoadedStart | None:
        """What every model begins from; None with random weights. Raises StorageError, ContributionError."""
        return load_start(self.training.start) if self.training.start else None

    def student_server(self) -> ServerConfig:
        """The server that inverts one model; its architecture is the model's own."""
        return self._server(iterations=self.student_iterations, architecture=self.training.architecture)

    def meta_learner_server(self) -> ServerConfig:
        """The server of a small federation."""
        learn = {"relational_tasks": 20, "batch_size": 128, "compositions": 100}
        changes = {} if self.training.start else {"learn": learn}
        return self._server(iterations=self.meta_learner_iterations, **changes)

    def _server(self, **changes: Any) -> ServerConfig:
        common = {"seed": self.seed, "threads": self.training.threads, "device": "cpu"}
        if self.training.start:
            common["preset"] = "start"
        return ServerConfig.parse(common | changes, origin="audit")
