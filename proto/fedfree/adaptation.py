"""The few-shot recipe a meta-learner was trained for: one function, run by server and client alike.

Three heads. ``nearest_mean``: cosine similarity to the class means of centred, normalised support
features (prototypical networks, Snell et al. 2017; centring and normalisation after SimpleShot,
Wang et al. 2019). ``ridge``: cosine similarity to the directions that ridge regression finds in the
roots of the features (Bertinetto et al. 2019; roots after Yang et al. 2021). ``gradient``: gradient
steps on every parameter from the meta-learned initialisation, linear head included (MAML, Finn et al.
2017; FREE, section 3.3).

Never transductive: networks run in evaluation mode, statistics come from the support set alone,
so a query's prediction does not depend on the other queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fedfree.architectures import Classifier
from fedfree.episodes import Episode
from fedfree.errors import ContributionError, DataError, ExtensionError
from fedfree.extension import Table, described, extending, is_ours

FEATURE_BATCH = 64
"""Images whose features are computed together: bounds the memory that a large support set takes."""


@dataclass(frozen=True)
class Recipe:
    """How a network becomes a classifier for new classes."""

    head: str = "nearest_mean"
    """One of ``HEADS``: ``nearest_mean``, ``ridge`` or ``gradient``."""
    steps: int = 0
    """Gradient steps on the support images; 0 leaves the network as it is."""
    learning_rate: float = 0.01
    """Of those steps (plain gradient descent)."""
    temperature: float = 0.1
    """``nearest_mean`` logits are cosine similarities divided by this, ``ridge`` logits likewise, times a
    factor that grows with the support set; ``gradient`` knows none."""
    mirror: bool = False
    """The head takes the mean of the features of each image and of its mirror image; not ``gradient``."""
    levels: bool = False
    """The head takes features of several depths of the network, where it has such; not ``gradient``."""

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ContributionError(f"unknown adaptation head {self.head!r}: use one of {', '.join(HEADS)}")
        if not 0 <= self.steps <= 1000:
            raise ContributionError(f"adaptation takes 0 to 1000 steps, got {self.steps}")
        if not (0 < self.learning_rate < 100 and 0 < self.temperature < 100):
            raise ContributionError(
                "learning_rate and temperature of a recipe lie between 0 and 100, got "
                f"{self.learning_rate} and {self.temperature}"
            )
        for name in ("mirror", "levels"):
            if getattr(self, name) and not self.fits_head:
                raise ContributionError(f"head {self.head} fits nothing to features: set {name} to false")

    @property
    def fits_head(self) -> bool:
        """Whether a head is fitted to features; else the network's own linear head decides."""
        return HEADS[self.head] is not None

    @property
    def keeps_network(self) -> bool:
        """Whether only a head is fitted, so that an image's features are the same for every support set."""
        return self.fits_head and self.steps == 0

    @property
    def is_calibrated(self) -> bool:
        """Whether the softmax of its logits is calibrated as it is, by what was measured (docs/method.md)."""
        return self.head == "ridge" and self.keeps_network and self.temperature == Recipe.temperature

    def embed(self, network: Classifier, images: Tensor) -> Tensor:
        """What the head takes of normalised [batch, channels, height, width] images, [batch, size]."""
        features_of = network.levels if self.levels else network.features
        features = features_of(images)
        return (features + features_of(images.flip(-1))) / 2 if self.mirror else features

    def feature_size(self, network: Classifier) -> int:
        """Of what :meth:`embed` gives."""
        return network.level_size or network.feature_size if self.levels else network.feature_size

    def fit_head(self, features: Tensor, labels: Tensor, *, n_way: int) -> "FittedHead":
        """Fit the head to support features [images, feature_size] with labels [images] in 0 … n_way - 1.

        Raises:
            ExtensionError: a head of somebody's own fails, or is none.
        """
        fit = HEADS[self.head]
        assert fit is not None, f"head {self.head} is the network's own: ask fits_head first"
        if is_ours(fit):
            return fit(features, labels, n_way=n_way, temperature=self.temperature)
        what = f"the head {self.head!r}"
        with extending(what, fit):
            head = fit(features, labels, n_way=n_way, temperature=self.temperature)
        _require_head(head, features, n_way=n_way, what=what)
        return head


class FittedHead(Protocol):
    """A head fitted to one support set: a frozen dataclass, whose tensors are all that is kept of it.

    Their shapes depend on n_way and feature_size alone.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def logits(self, features: Tensor) -> Tensor:
        """[queries, feature_size] to [queries, n_way], each query on its own."""


class FitHead(Protocol):
    """Fits a head to support features [images, feature_size] with labels [images] in 0 … n_way - 1."""

    def __call__(self, features: Tensor, labels: Tensor, *, n_way: int, temperature: float) -> FittedHead: ...


def _require_head(head: object, features: Tensor, *, n_way: int, what: str) -> None:
    """Refuse what a function of somebody's own gave, where it is no head; raises ExtensionError."""
    if not is_dataclass(head) or isinstance(head, type) or not callable(getattr(head, "logits", None)):
        raise ExtensionError(
            f"{what} gave a {type(head).__name__}: expected a dataclass with logits(features)"
        )
    asked = features[:2].detach()
    with torch.no_grad(), extending(f"logits of {what}", type(head).logits):  # type: ignore[attr-defined]
        logits = head.logits(asked)  # type: ignore[attr-defined]
    if (gave := described(logits)) != [len(asked), n_way]:
        raise ExtensionError(f"{what} gave logits {gave}: expected {[len(asked), n_way]}")
    if bool(asked.any() and asked.isfinite().all()) and not logits.isfinite().all():
        raise ExtensionError(f"{what} gave logits that are not finite, of features that are")


def head_tensors(head: FittedHead) -> dict[str, Tensor]:
    """The tensors of a fitted head by name."""
    return {name: value for name, value in vars(head).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class NearestMean:
    """Class means of centred, normalised features."""

    centre: Tensor
    """[feature_size]: mean of the support features."""
    means: Tensor
    """[n_way, feature_size], unit length."""
    temperature: float

    def logits(self, features: Tensor) -> Tensor:
        """[queries, feature_size] to [queries, n_way]."""
        return F.normalize(features - self.centre, dim=1) @ self.means.T / self.temperature


def nearest_mean(features: Tensor, labels: Tensor, *, n_way: int, temperature: float) -> NearestMean:
    """Fit the head to support features [images, feature_size] with labels [images] in 0 … n_way - 1."""
    centre = features.mean(0)
    members = F.one_hot(labels, n_way).to(features.dtype)
    sums = members.T @ F.normalize(features - centre, dim=1)
    return NearestMean(centre, F.normalize(sums, dim=1), temperature)


RIDGE = 0.3
"""Of the ridge penalty, relative to the mean diagonal element of the features' kernel, which is 1."""
TYPICAL_SUPPORT, SHARPENING = 25, 0.37
"""Logits are multiplied by (support images / TYPICAL_SUPPORT) ** SHARPENING: from more images the directions
are surer. With a temperature of 0.1 they are calibrated then (docs/method.md)."""


@dataclass(frozen=True)
class Ridge:
    """Directions of ridge regression in the centred, normalised roots of the features."""

    centre: Tensor
    """[feature_size]: mean of the class means of the support images' roots."""
    weights: Tensor
    """[n_way, feature_size], all of one length."""
    offsets: Tensor
    """[n_way]: what the chance in the centre takes from each class; 0 where all have as many images."""
    temperature: float

    def logits(self, features: Tensor) -> Tensor:
        """[queries, feature_size] to [queries, n_way]."""
        centred = unit_roots(features) - self.centre
        lengths = centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
        cosines: Tensor = (centred @ self.weights.T + self.offsets) / lengths
        return cosines / self.temperature


def ridge(features: Tensor, labels: Tensor, *, n_way: int, temperature: float) -> Ridge:
    """Fit the head to support features [images, feature_size] with labels [images] in 0 … n_way - 1.

    Each class weighs the same, however many images it has. From one image a class this is close to the
    nearest mean.

    The centre holds each class's chance error, of variance σ² / images. A direction is made of the same
    images, so that the centre lies too far along it where they are few: without the offset, such classes are
    hardly ever predicted. With σ² from the spread within the classes the offset is its expectation.
    """
    with torch.autocast(features.device.type, enabled=False):
        roots = unit_roots(features.to(torch.promote_types(features.dtype, torch.float32)))
        members = F.one_hot(labels, n_way).to(roots.dtype)
        shares = members / members.sum(0)
        means = shares.T @ roots
        centre = means.mean(0)
        lengths = (roots - centre).norm(dim=1, keepdim=True).clamp_min(1e-12)
        share = shares.sum(1, keepdim=True)
        mean_share = (1 / members.sum(0)).mean()
        weight = (len(labels) / n_way * share).sqrt()
        inputs, targets = weight * (roots - centre) / lengths, weight * (members - 1 / n_way)
        directions = _ridge_regression(inputs, targets)
        coefficients = weight * (targets - inputs @ directions) / RIDGE / lengths
        variance = (roots - means[labels]).square().sum() / max(len(labels) - n_way, 1)
        offsets = variance / n_way * ((share - mean_share).T @ coefficients)[0]
        scale = (len(labels) / TYPICAL_SUPPORT) ** SHARPENING / directions.norm(dim=0).clamp_min(1e-12)
        return Ridge(centre, (directions * scale).T.contiguous(), offsets * scale, temperature)


def _ridge_regression(inputs: Tensor, targets: Tensor) -> Tensor:
    """[images, size] and [images, ways] to [size, ways], by the smaller of the two systems of equations."""
    images, size = inputs.shape
    if images <= size:
        dual: Tensor = torch.linalg.solve(_penalised(inputs @ inputs.T), targets)
        return inputs.T @ dual
    primal: Tensor = torch.linalg.solve(_penalised(inputs.T @ inputs), inputs.T @ targets)
    return primal


def _penalised(gram: Tensor) -> Tensor:
    return gram + RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def unit_roots(features: Tensor) -> Tensor:
    """[images, feature_size] to the roots of the values with their signs, each image's of unit length.

    Roots make the skewed values of pooled features more alike (power transform of Yang et al. 2021). The
    small constant keeps the gradient finite at 0.
    """
    unit = F.normalize(features, dim=1)
    return F.normalize(unit / (unit.abs() + 1e-3).sqrt(), dim=1)


HEADS: Table[FitHead | None] = Table("head", {"nearest_mean": nearest_mean, "ridge": ridge, "gradient": None})
"""From name to what fits the head to features; None: gradient steps on the network's own linear head."""


@dataclass(frozen=True)
class AdaptedClassifier:
    """A network adapted to the classes of one support set."""

    network: Classifier
    parameters: Mapping[str, Tensor]
    """The network's parameters after adaptation; the linear head has n_way rows with head ``gradient``."""
    head: FittedHead | None
    """None: the network's own linear head decides."""
    recipe: Recipe

    def logits(self, images: Tensor) -> Tensor:
        """[queries, channels, height, width], normalised, to [queries, n_way]."""
        if self.head is None:
            return _forward(self.network, self.parameters, images)
        return self.head.logits(_features(self.network, self.parameters, images, self.recipe))


def adapt(
    network: Classifier,
    recipe: Recipe,
    support_images: Tensor,
    support_labels: Tensor,
    *,
    n_way: int,
    create_graph: bool = False,
) -> AdaptedClassifier:
    """Turn ``network`` into a classifier for the classes of the support set; the network is unchanged.

    Differentiable in the network's parameters: to first order, or through the steps with
    ``create_graph``.

    Args:
        network: in evaluation mode.
        support_images: [images, channels, height, width], normalised.
        support_labels: [images], int64 in 0 … n_way - 1; every class has at least one image.

    Raises:
        DataError: a class without a support image.
    """
    if len(support_labels) == 0 or support_labels.bincount(minlength=n_way).min() == 0:
        raise DataError(f"each of the {n_way} classes needs at least one support image")
    parameters: dict[str, Tensor] = dict(network.named_parameters())

    def head_of(current: Mapping[str, Tensor]) -> FittedHead | None:
        if not recipe.fits_head:
            return None
        features = _features(network, current, support_images, recipe)
        return recipe.fit_head(features, support_labels, n_way=n_way)

    with torch.enable_grad():
        if not recipe.fits_head:
            parameters |= _resized_head(parameters, n_way)
        for _ in range(recipe.steps):
            current = AdaptedClassifier(network, parameters, head_of(parameters), recipe)
            loss = F.cross_entropy(current.logits(support_images), support_labels)
            parameters = _descend(parameters, loss, recipe.learning_rate, create_graph)
    return AdaptedClassifier(network, parameters, head_of(parameters), recipe)


def _descend(
    parameters: Mapping[str, Tensor], loss: Tensor, learning_rate: float, create_graph: bool
) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=create_graph, allow_unused=True
    )
    return {
        name: value if gradient is None else value - learning_rate * gradient
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
    }


def _resized_head(parameters: Mapping[str, Tensor], n_way: int) -> dict[str, Tensor]:
    """The linear head with n_way rows: the first ones learned, any further ones their mean."""
    resized = {}
    for name in ("head.weight", "head.bias"):
        value = parameters[name]
        further = max(0, n_way - len(value))
        mean = value.mean(0, keepdim=True).expand(further, *value.shape[1:])
        resized[name] = torch.cat([value[:n_way], mean])
    return resized


def _forward(network: Classifier, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    logits: Tensor = functional_call(network, dict(parameters), (images,))
    return logits


class _Features(torch.nn.Module):
    """Lets ``functional_call`` reach what a head takes of a classifier."""

    def __init__(self, network: Classifier, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe

    def forward(self, images: Tensor) -> Tensor:
        return self.recipe.embed(self.network, images)


def _features(
    network: Classifier, parameters: Mapping[str, Tensor], images: Tensor, recipe: Recipe
) -> Tensor:
    module, prefixed = (
        _Features(network, recipe),
        {f"network.{name}": value for name, value in parameters.items()},
    )
    return torch.cat([functional_call(module, prefixed, (batch,)) for batch in images.split(FEATURE_BATCH)])


def head_accuracy(features: Tensor, recipe: Recipe, episode: Episode) -> Tensor:
    """Fraction of an episode's query images that a head fitted to its support images gets right, a scalar.

    Args:
        features: [images, feature_size], which the episode indexes.
    """
    n_way = int(episode.support_labels.max()) + 1
    head = recipe.fit_head(features[episode.support], episode.support_labels, n_way=n_way)
    predicted = head.logits(features[episode.query]).argmax(1)
    return (predicted == episode.query_labels).double().mean()
