"""EXPORT: an adapted classifier as one ONNX file, for programs that know nothing of PyTorch or FedFREE.

All that follows decoding a picture is inside, antialiased shrinking too: whoever has to shrink photos
elsewhere does it without, and loses accuracy.
"""

import importlib.util
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import fedfree
from client.adapting.classifier import FewShotClassifier
from fedfree.architectures import InputSpec
from fedfree.errors import ConfigError, FedFreeError
from fedfree.host.files import refuse_foreign, require_writable, write_file
from fedfree.host.images.formats import Fit
from fedfree.seeding import make_generator

TOLERANCE = 1e-4
"""Largest difference of a probability between PyTorch and onnxruntime."""
CHECKED_QUARTERS = ((4, 4), (2, 3), (9, 13), (4, 21))
"""Heights and widths at which the two are compared, in quarters of the network's own."""
SQUARE: Mapping[Fit, str] = {
    "crop": "outside: cut the middle square out of an image that is not square, at any size",
    "letterbox": "outside: pad an image that is not square with grey (0.5) on two sides alike, at any size",
    "squeeze": "inside: an image that is not square is squeezed",
}
"""What whoever runs the file does with an image that is not square, by the classifier's fit."""
REQUIRED = ("onnx", "onnxscript", "onnxruntime")
VERSION = "fedfree_version"
"""Key of the metadata of every exported file."""

# Otherwise onnxruntime reports every process that imports it to its maker, with an id of the machine.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def export_onnx(classifier: FewShotClassifier, path: Path) -> float:
    """Write the classifier as ONNX, after comparing it with PyTorch on random images of several sizes.

    Input ``pixels`` [batch, channels, height, width], float32 in [0, 1], of any batch size, height and width;
    output ``probabilities`` [batch, n_way], calibrated; where the classifier knows none of these, also
    ``similarity`` [batch], for the threshold ``none_of_these_below`` of the metadata. Resizing and
    normalisation are inside; making an image square, as :data:`SQUARE` says, is not: what is not square is
    squeezed. The metadata says all this, and names the classes in the order of the outputs, as JSON under
    ``class_names``.

    Returns:
        The largest absolute difference of a probability.

    Raises:
        ConfigError: the packages of the ``onnx`` extra are not installed, ``path`` cannot be written, or
            another kind of file is there.
        FedFreeError: the two differ by more than TOLERANCE; nothing is written.
    """
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export needs {', '.join(missing)}, not installed here: pip install 'fedfree[onnx]'"
        )
    refuse_foreign(path, VERSION.encode())
    require_writable(path)
    model = _to_onnx(classifier)
    input = classifier.description.input
    sizes = [(height * input.height // 4, width * input.width // 4) for height, width in CHECKED_QUARTERS]
    difference = max(_difference(classifier, model, *size) for size in sizes)
    if not difference <= TOLERANCE:
        raise FedFreeError(
            f"the exported probabilities differ from PyTorch's by {difference:.1e}, more than "
            f"{TOLERANCE:.0e}; nothing was written"
        )
    write_file(path, model)
    return difference


class _Exported(nn.Module):
    """A classifier with all its outputs: what ``torch.onnx.export`` takes is a module's ``forward``."""

    def __init__(self, classifier: FewShotClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.classifier.description.openness:
            return self.classifier.judge(pixels)
        return (self.classifier(pixels),)


def _to_onnx(classifier: FewShotClassifier) -> bytes:
    input, dimension = classifier.description.input, torch.export.Dim
    # Of another size than the network's own, or tracing would leave out the resize.
    example = _random_images(input, 2, 2 * input.height, 3 * input.width)
    with warnings.catch_warnings():
        # The means and deviations of the normalisation are constants, which torch.export lifts by itself.
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")
        program = torch.onnx.export(
            _Exported(classifier).eval(),
            (example,),
            input_names=["pixels"],
            output_names=["probabilities", "similarity"]
            if classifier.description.openness
            else ["probabilities"],
            dynamic_shapes={"pixels": {0: dimension("batch"), 2: dimension("height"), 3: dimension("width")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export returns a program unless it is given a file"
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter notes the lines and paths of the source there
    program.model.metadata_props.update(_metadata(classifier))
    return program.model_proto.SerializeToString()


def _metadata(classifier: FewShotClassifier) -> dict[str, str]:
    """What whoever runs the file has to know, and has nobody to ask."""
    description = classifier.description
    input = description.input
    return {
        "class_names": json.dumps(classifier.class_names),
        "value_range": "0 to 1",
        "channel_order": "RGB" if input.channels == 3 else "grey",
        "not_square": SQUARE[description.fit],
        "resize": f"inside: any size is brought to {input.height} x {input.width}, bilinear, antialiased",
        "normalisation": f"inside: mean {list(input.mean)}, standard deviation {list(input.std)}",
        "calibrated": json.dumps(classifier.calibrated),
        **({"none_of_these_below": repr(openness.threshold)} if (openness := description.openness) else {}),
        "meta_learner_sha256": description.meta_learner,
        VERSION: fedfree.__version__,
    }


def _difference(classifier: FewShotClassifier, model: bytes, height: int, width: int) -> float:
    """Largest absolute difference of an output on random images of one size."""
    import onnxruntime

    images = _random_images(classifier.description.input, 3, height, width)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    exported = session.run(None, {"pixels": images.numpy()})
    with torch.no_grad():
        expected = _Exported(classifier)(images)
    return max(
        float((torch.from_numpy(found) - each).abs().max())
        for found, each in zip(exported, expected, strict=True)
    )


def _random_images(input: InputSpec, batch: int, height: int, width: int) -> Tensor:
    """[batch, channels, height, width] in [0, 1]."""
    generator = make_generator(0, "export", batch, height, width)
    return torch.rand(batch, input.channels, height, width, generator=generator)
