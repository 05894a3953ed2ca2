"""Models held in memory: learning needs no store."""

from collections.abc import Callable, Sequence

import pytest
import torch

from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.codec import Contribution
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement
from server.config import InvertConfig, MetaLearnConfig, ServerConfig
from server.learning.pool import Pool
from server.learning.state import State, begin

GREY = InputSpec(channels=1, height=16, width=16)


class ModelsInMemory:
    """Random Conv4 networks of three classes, named by their position among the inputs."""

    def __init__(self, inputs: Sequence[InputSpec]) -> None:
        self.inputs = inputs
        self.built: list[str] = []

    start: LoadedStart | None = None
    further_starts = ()

    def describe(self, identity: str) -> Contribution:
        begun = self.start.start.sha256 if self.start else ""
        return Contribution(Architecture(), 3, self.inputs[int(identity)], PrivacyStatement(), b"", begun)

    def network(self, identity: str) -> tuple[Contribution, Classifier]:
        self.built.append(identity)
        torch.manual_seed(int(identity))
        description = self.describe(identity)
        return description, build(Architecture(), num_classes=3, input=description.input)

    def state(self, identity: str) -> dict[str, torch.Tensor]:
        return self.network(identity)[1].state_dict()

    def organisation(self, identity: str) -> str | None:
        return None

    def pool(self) -> Pool:
        return Pool(self, [str(number) for number in range(len(self.inputs))], torch.device("cpu"))


@pytest.fixture
def make_models() -> Callable[..., ModelsInMemory]:
    return lambda inputs=(GREY,) * 3: ModelsInMemory(inputs)


@pytest.fixture
def make_state(make_models: Callable[..., ModelsInMemory]) -> Callable[..., State]:
    """A state of three small models; ``learn`` changes what the meta-learner learns by, names the rest."""

    def make(learn: dict[str, object] | None = None, **changes: object) -> State:
        few = {"compositions": 4, "relational_tasks": 2, "batch_size": 8, "memory_images": 100}
        config = ServerConfig(
            device="cpu",
            precision="float32",
            iterations=4,
            invert=InvertConfig(models_per_iteration=2, images_per_model=12, steps=1, generator_width=2),
            learn=MetaLearnConfig.parse(few | (learn or {}), origin="test"),
        )
        return begin(make_models().pool(), config.model_copy(update=changes))

    return make
