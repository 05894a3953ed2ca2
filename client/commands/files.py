"""Files that the commands read: a contribution's two, a meta-learner's two."""

from pathlib import Path

from fedfree.codec import MetaLearner, decode_meta_learner
from fedfree.errors import ConfigError
from fedfree.host.files import read_file

META_LEARNER = Path("meta_learner.safetensors")


def manifest_beside(meta_learner: Path) -> Path:
    """Where the manifest of a meta-learner's weights lies."""
    return meta_learner.with_name(f"{meta_learner.stem}.manifest.pb")


def read_meta_learner(weights: Path) -> MetaLearner:
    """A meta-learner from its weights and the manifest beside them; raises ConfigError where they are not.

    Args:
        weights: their file, or the folder of the run that wrote it.
    """
    if weights.is_dir():
        weights /= META_LEARNER
    if not weights.is_file():
        raise ConfigError(
            f"no meta-learner at {weights}: get it with fedfree-client fetch, or name it with --meta-learner"
        )
    manifest = read_file(manifest_beside(weights))
    return decode_meta_learner(manifest, read_file(weights))
