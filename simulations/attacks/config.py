"""What an audit is configured with."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from client.config import PrivacyConfig, TrainingConfig
from client.rehearsing.rehearse import CANARY_FRACTION, MIN_SHADOWS
from fedfree.architectures import Architecture
from fedfree.host.compute import Device
from fedfree.settings import Settings
from server.config import ServerConfig, preset


class AuditConfig(Settings):
    """One organisation's images, and everything that is made of its models to be attacked."""

    dataset: str = "glyphs"
    """``glyphs``, ``omniglot``, ``cifar-fs``, or the path of an image folder or zip."""
    classes: Annotated[int, Field(ge=2)] = 5
    images_per_class: Annotated[int, Field(ge=4)] = 480
    """At most."""
    shadows: Annotated[int, Field(ge=MIN_SHADOWS)] = 16
    """Models, each trained on a half; each is the target once, with the others as its shadows."""
    canary_fraction: Annotated[float, Field(gt=0, lt=1)] = CANARY_FRACTION
    """Share of the images that get a wrong label."""
    architecture: Architecture = Architecture()
    image_size: Annotated[int, Field(ge=16, le=512)] = 32
    """Pixels a side."""
    epochs: Annotated[int, Field(ge=1)] = 30
    min_steps: Annotated[int, Field(ge=1)] = 300
    """Few images are gone through more often than ``epochs`` says, until this many steps are taken."""
    rotation_task: bool | None = None
    """Whether models also learn to tell quarter turns; without it, for colour images only."""
    initial_weights: Path | None = None
    """safetensors that every model's training begins from."""
    privacy: PrivacyConfig = PrivacyConfig()
    """Of each model's training; by default without differential privacy."""
    student_iterations: Annotated[int, Field(ge=1)] = 20
    """Of the inversion of each model; every one adds 100 images."""
    student_steps: Annotated[int, Field(ge=1)] = 200
    """Of the student that learns from these images."""
    meta_learner: Annotated[int, Field(ge=0)] = 0
    """For how many of the models a federation is run to attack the meta-learner; 0 leaves it out."""
    companions: Annotated[int, Field(ge=1)] = 3
    """Other organisations of such a federation, the same in each."""
    meta_learner_iterations: Annotated[int, Field(ge=1)] = 10
    """Of such a federation's server."""
    device: Device = "auto"
    """On which models are trained; the servers use the CPU."""
    threads: Annotated[int, Field(ge=1)] = 2
    seed: Annotated[int, Field(ge=0)] = 0
    cache: Path = Path(".cache/fedfree")
    """Folder for data sets made or downloaded."""

    @field_validator("architecture", mode="before")
    @classmethod
    def _read_architecture(cls, value: object) -> object:
        """``conv4-64-group`` as well as a table."""
        return Architecture.parse(value) if isinstance(value, str) else value

    @field_validator("meta_learner")
    @classmethod
    def _leave_shadows(cls, value: int) -> int:
        if 0 < value < MIN_SHADOWS:
            raise ValueError(f"attacking the meta-learner needs at least {MIN_SHADOWS} federations")
        return value

    def training(self) -> TrainingConfig:
        """How an organisation trains."""
        return TrainingConfig(
            architecture=self.architecture,
            image_size=self.image_size,
            epochs=self.epochs,
            min_steps=self.min_steps,
            rotation_task=self.rotation_task,
            initial_weights=self.initial_weights,
            device=self.device,
            threads=self.threads,
        )

    def student_server(self) -> ServerConfig:
        """The server that inverts one model; its architecture is the model's own."""
        return self._server(iterations=self.student_iterations, architecture=self.architecture)

    def meta_learner_server(self) -> ServerConfig:
        """The server of a small federation."""
        learn = {"relational_tasks": 20, "batch_size": 128, "compositions": 100}
        return self._server(iterations=self.meta_learner_iterations, learn=learn)

    def _server(self, **changes: Any) -> ServerConfig:
        values = preset("default").model_dump()
        changes["learn"] = values["learn"] | changes.get("learn", {})
        common = {"seed": self.seed, "threads": self.threads, "device": "cpu"}
        return ServerConfig.parse(values | common | changes, origin="audit")
