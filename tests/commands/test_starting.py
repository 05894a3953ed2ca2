"""What a command may import before it knows what it is asked for."""

import subprocess
import sys

HEAVY = (
    "flwr",
    "matplotlib",
    "onnxruntime",
    "opacus",
    "peft",
    "scipy",
    "timm",
    "torch._dynamo",
    "torchvision",
)
"""Each takes as long as a command that prints one line may take, and few commands need it."""


STEPS = (
    "import client.commands.main, server.commands.main, simulations.commands.main",
    "from fedfree.architectures import Architecture, InputSpec, build; "
    "build(Architecture(), num_classes=2, input=InputSpec(1, 16, 16))",
)
"""A command's start; a network made, and its cost known, without a compiler."""


def test_neither_a_commands_start_nor_a_network_imports_what_few_commands_need() -> None:
    told = f"print(*sorted(set({HEAVY}) & set(sys.modules)))"
    code = "\n".join(("import sys", *(f"{step}\n{told}" for step in STEPS)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"
