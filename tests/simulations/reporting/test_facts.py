"""What is stated of the machine beside every number."""

import pytest

from simulations.reporting.facts import driver_version


@pytest.mark.parametrize(
    ("described", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30",
            "550.54.14",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("", None),
    ],
)
def test_the_driver_is_read_from_what_its_module_says(described: str, version: str | None) -> None:
    assert driver_version(described) == version
