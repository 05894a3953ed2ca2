"""What a command may import before it knows what it is asked for."""

import subprocess
import sys

HEAVY = (
    "matplotlib.figure",
    "onnxruntime",
    "opacus",
    "peft",
    "scipy",
    "timm",
    "torch._dynamo",
    "torchvision",
)
"""Each takes as long as a command that prints one line may take, and few commands need it."""


def heavy_after(code: str) -> list[str]:
    """Those of HEAVY that a process has imported after some code."""
    code = f"import sys\n{code}\nprint(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_no_command_imports_at_its_start_what_few_commands_need() -> None:
    assert heavy_after("import client.commands.main, server.commands.main, simulations.commands.main") == []


def test_a_network_is_made_and_its_cost_known_without_a_compiler() -> None:
    code = "from fedfree.architectures import Architecture, InputSpec, build\n"
    assert heavy_after(code + "build(Architecture(), num_classes=2, input=InputSpec(1, 16, 16))") == []
