"""The contract: what server and client must agree on to the byte, and nothing else."""

__version__ = "0.1.0"
"""As in pyproject.toml; written here because a lookup of installed packages can fail while Flower,
in another thread, changes ``sys.path``.
"""

PROTOCOL_VERSION = 1
