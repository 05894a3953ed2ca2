"""The kinds of test_hostile_bytes.py under a fuzzer that follows which lines of ours an input reaches.

``make fuzz KIND=weights SECONDS=60``, or ``python tests/properties/guided.py KIND`` with libFuzzer's options.
It ends with the input and its traceback where anything but a FedFreeError comes of it.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]


def main(name: str, options: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    sys.path[:0] = [str(ROOT), str(ROOT / "proto")]
    with atheris.instrument_imports(include=["fedfree", "client", "server"]):
        file = Path(__file__).with_name("test_hostile_bytes.py")
        spec = importlib.util.spec_from_file_location("hostile", file)
        assert spec is not None and spec.loader is not None
        hostile = importlib.util.module_from_spec(spec)
        sys.modules["hostile"] = hostile
        spec.loader.exec_module(hostile)
    kind = hostile.KINDS[name]

    def attempt(content: bytes) -> None:
        try:
            kind.attempt(content)
        except hostile.FedFreeError:
            return

    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(kind.seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], "-rss_limit_mb=4096", "-timeout=10", *options, str(corpus)], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
