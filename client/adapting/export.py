"""EXPORT: an adapted classifier as one ONNX file, for programs that know nothing of PyTorch or FedFREE."""

import importlib.util
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from client.adapting.classifier import FewShotClassifier
from fedfree.errors import ConfigError, FedFreeError
from fedfree.host.files import write_file
from fedfree.seeding import make_generator

TOLERANCE = 1e-4
"""Largest difference of a probability between PyTorch and onnxruntime."""
REQUIRED = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(classifier: FewShotClassifier, path: Path) -> float:
    """Write the classifier as ONNX, after comparing it with PyTorch on random images.

    Input ``pixels`` [batch, channels, height, width], float32 in [0, 1], any batch size; output
    ``probabilities`` [batch, n_way], calibrated. Normalisation is inside. The file's metadata names the
    classes in the order of the outputs, as JSON under ``class_names``.

    Returns:
        The largest absolute difference of a probability.

    Raises:
        ConfigError: the packages of the ``onnx`` extra are not installed, or ``path`` cannot be written.
        FedFreeError: the two differ by more than TOLERANCE; nothing is written.
    """
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export needs {', '.join(missing)}, not installed here: pip install 'fedfree[onnx]'"
        )
    model = _to_onnx(classifier)
    difference = max(_difference(classifier, model, batch) for batch in (1, 7))
    if not difference <= TOLERANCE:
        raise FedFreeError(
            f"the exported probabilities differ from PyTorch's by {difference:.1e}, more than "
            f"{TOLERANCE:.0e}; nothing was written"
        )
    write_file(path, model)
    return difference


def _to_onnx(classifier: FewShotClassifier) -> bytes:
    example = _random_images(classifier, 2)
    with warnings.catch_warnings():
        # The means and deviations of the normalisation are constants, which torch.export lifts by itself.
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")
        program = torch.onnx.export(
            classifier,
            (example,),
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export returns a program unless it is given a file"
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter notes the lines and paths of the source there
    program.model.metadata_props["class_names"] = json.dumps(classifier.class_names)
    return program.model_proto.SerializeToString()


def _difference(classifier: FewShotClassifier, model: bytes, batch: int) -> float:
    import onnxruntime

    images = _random_images(classifier, batch)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {"pixels": images.numpy()})
    with torch.no_grad():
        return float((torch.from_numpy(exported) - classifier(images)).abs().max())


def _random_images(classifier: FewShotClassifier, batch: int) -> Tensor:
    """[batch, channels, height, width] in [0, 1]."""
    input = classifier.description.input
    shape = (batch, input.channels, input.height, input.width)
    return torch.rand(shape, generator=make_generator(0, "export", batch))
