"""Files that the commands read: a contribution's two, a meta-learner's two."""

from pathlib import Path

from client.limits import LimitsConfig, check_meta_learner
from fedfree.codec import MetaLearner, decode_meta_learner, describe_meta_learner
from fedfree.errors import ConfigError
from fedfree.host.files import read_file
from fedfree.signing import read_signature

META_LEARNER = Path("meta_learner.safetensors")


def manifest_beside(meta_learner: Path) -> Path:
    """Where the manifest of a meta-learner's weights lies."""
    return meta_learner.with_name(f"{meta_learner.stem}.manifest.pb")


def signature_beside(meta_learner: Path) -> Path:
    """Where the signature over that manifest lies, where it was kept."""
    return meta_learner.with_name(f"{meta_learner.stem}.signature.pb")


def read_meta_learner(weights: Path, limits: LimitsConfig | None = None) -> MetaLearner:
    """A meta-learner from its weights and the manifest beside them.

    Whose it is was asked when it was fetched; where its signature was kept, it must still hold.

    Args:
        weights: their file, or the folder of the run that wrote it.
        limits: what it may ask of whoever adapts it; None where nobody will.

    Raises:
        ConfigError: they are not there.
        TooMuchError: it asks for more, and its weights were not read.
        SignatureError, ContributionError: the files do not belong together, or break the contract.
    """
    if weights.is_dir():
        weights /= META_LEARNER
    if not weights.is_file():
        raise ConfigError(
            f"no meta-learner at {weights}: get it with fedfree-client fetch, or name it with --meta-learner"
        )
    manifest = read_file(manifest_beside(weights))
    if signature_beside(weights).is_file():
        read_signature("meta-learner", manifest, read_file(signature_beside(weights)))
    if limits is not None:
        check_meta_learner(describe_meta_learner(manifest), limits)
    return decode_meta_learner(manifest, read_file(weights))
