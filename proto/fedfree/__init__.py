"""The contract: what server and client must agree on to the byte, and nothing else."""

from importlib.metadata import version

__version__ = version("fedfree")

PROTOCOL_VERSION = 1
