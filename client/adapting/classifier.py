"""A classifier that an organisation made for its own classes, and the one file it is kept in.

The file is safetensors. Its metadata holds a description of the classifier as JSON, and the SHA-256 of
description and tensors, which tells a damaged file. Nothing in it is executed: the network is built from
:mod:`fedfree.architectures`, and takes tensors only by the names, shapes and types it expects.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from fedfree.adaptation import AdaptedClassifier, FittedHead, Recipe, head_tensors, unit_roots
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Provenance, encode_weights, fill_network, sha256
from fedfree.errors import ConfigError, ContributionError, FedFreeError
from fedfree.host.files import refuse_foreign, write_file
from fedfree.host.images.formats import Fit
from fedfree.settings import Settings

DESCRIPTION, DIGEST = "fedfree_classifier", "sha256"


class Calibration(Settings):
    """What leaving out support images one at a time has shown."""

    temperature: Annotated[float, Field(gt=0, lt=1000)]
    """The recipe's logits are divided by this before the softmax; 1 leaves them as they are."""
    images: Annotated[int, Field(ge=1)]
    """Support images that were left out and predicted from the others."""
    accuracy: Annotated[float, Field(ge=0, le=1)]
    """Fraction of them that was predicted correctly."""


class Openness(Settings):
    """When an image belongs to none of the classes."""

    threshold: Annotated[float, Field(ge=-1, le=1)]
    """Images whose cosine similarity to the nearest class mean is lower do not."""
    images: Annotated[int, Field(ge=0)]
    """Support images left out to find it; 0: too few, and a share fixed beforehand was used."""


class Description(Settings):
    """Everything about a classifier but its tensors."""

    format: Literal[1] = 1
    architecture: Architecture
    input: InputSpec
    recipe: Recipe
    fit: Fit = "squeeze"
    """How the support images became square, and every image must; releases that knew no other squeezed."""
    support: dict[str, Annotated[int, Field(ge=1)]]
    """From class name, in the order of the outputs, to its number of support images; both stay here."""
    calibration: Calibration | None
    """None: no class had two support images."""
    openness: Openness | None = None
    """None: every image is taken to belong to one of the classes."""
    meta_learner: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the manifest of the meta-learner that was adapted."""
    provenance: Provenance
    """Of that meta-learner."""


class FewShotClassifier(nn.Module):
    """From pixels of any size to the probabilities of an organisation's own classes.

    Its state dict is what the file holds: the network after adaptation, and where a head was fitted to
    features, that head's tensors in place of the network's linear head.
    """

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        n_way = len(description.support)
        self.network = build(description.architecture, num_classes=n_way, input=description.input)
        self.temperature = description.calibration.temperature if description.calibration else 1.0
        self.head: FittedHead | None = None
        size = description.recipe.feature_size(self.network)
        if description.recipe.fits_head:
            self.network.head = nn.Identity()
            # Fitted to nothing: it tells the shapes, and what of the head is no tensor.
            blank = torch.zeros(n_way, size)
            self.head = description.recipe.fit_head(blank, torch.arange(n_way), n_way=n_way)
            for name, tensor in head_tensors(self.head).items():
                self.register_buffer(name, torch.zeros_like(tensor))
        if description.openness:
            self.register_buffer("class_means", torch.zeros(n_way, size))
        self.requires_grad_(False).eval()

    @classmethod
    def from_adapted(
        cls, adapted: AdaptedClassifier, description: Description, class_means: Tensor | None = None
    ) -> Self:
        """The classifier that ``adapted`` is, with a copy of its tensors.

        Args:
            class_means: [n_way, feature_size], of unit length, where the description knows ``openness``.

        Raises:
            ContributionError: adapting has led to NaN or infinity.
        """
        classifier = cls(description)
        learned = adapted.network.state_dict() | dict(adapted.parameters)
        tensors = {f"network.{name}": tensor for name, tensor in learned.items()}
        if adapted.head is not None:
            tensors |= head_tensors(adapted.head)
        if class_means is not None:
            tensors["class_means"] = class_means
        tensors = {name: tensors[name] for name in classifier.state_dict()}
        fill_network(classifier, tensors, "the adapted classifier")
        return classifier

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the outputs."""
        return tuple(self.description.support)

    @property
    def calibrated(self) -> bool:
        """Whether the probabilities are calibrated, on left-out support images or beforehand."""
        return self.description.calibration is not None or self.description.recipe.is_calibrated

    def logits(self, pixels: Tensor) -> Tensor:
        """[batch, channels, any height, any width] in [0, 1] to [batch, n_way], as the recipe gives them."""
        return self._head_logits(self._outputs(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, channels, any height, any width] in [0, 1] to probabilities [batch, n_way]."""
        return (self.logits(pixels) / self.temperature).softmax(1)

    def judge(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [batch, n_way], and similarities to the nearest class mean [batch].

        To be called where the description knows ``openness``, whose threshold the similarities are for.
        """
        features = self._outputs(pixels)
        similarity = (unit_roots(features) @ self.get_buffer("class_means").T).amax(1)
        return (self._head_logits(features) / self.temperature).softmax(1), similarity

    def _outputs(self, pixels: Tensor) -> Tensor:
        """Features; logits where the network's own head decides."""
        recipe, input = self.description.recipe, self.description.input
        images = input.normalise(input.resize(pixels))
        return recipe.embed(self.network, images) if recipe.fits_head else self.network(images)

    def _head_logits(self, outputs: Tensor) -> Tensor:
        if self.head is None:
            return outputs
        kept = {name: getattr(self, name) for name in head_tensors(self.head)}
        return replace(self.head, **kept).logits(outputs)


def write_classifier(classifier: FewShotClassifier, path: Path) -> None:
    """Store a classifier in one file.

    Raises:
        ConfigError: that is not possible, or another kind of file is there.
    """
    refuse_foreign(path, DESCRIPTION.encode())
    description = classifier.description.model_dump_json()
    metadata = {DESCRIPTION: description, DIGEST: _digest(description, classifier)}
    write_file(path, safetensors.torch.save(classifier.state_dict(), metadata))


def read_classifier(path: Path) -> FewShotClassifier:
    """Read and check what :func:`write_classifier` has written.

    Raises:
        ConfigError, ContributionError: a file that cannot be read, is damaged, or is no classifier.
    """
    metadata, tensors = _read(path)
    text = metadata.get(DESCRIPTION, "")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no adapted classifier; make one with fedfree-client adapt") from error
    try:
        description = Description.checked(values)
    except FedFreeError as error:
        raise ContributionError(
            f"{path} is damaged, was changed, or is of another release ({error}): adapt again"
        ) from error
    classifier = FewShotClassifier(description)
    fill_network(classifier, tensors, str(path))
    if metadata.get(DIGEST) != _digest(text, classifier):
        raise ContributionError(f"{path} is damaged or was changed: its sha256 differs; adapt again")
    return classifier


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not the file of a classifier; name what adapt wrote")
    if not path.is_file():
        raise ConfigError(f"no such file: {path}; make one with fedfree-client adapt")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except safetensors.SafetensorError as error:
        raise ContributionError(f"{path} is not valid safetensors: {error}") from error


def _digest(description: str, classifier: FewShotClassifier) -> str:
    return sha256(description.encode() + encode_weights(classifier))
