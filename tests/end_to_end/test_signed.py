"""What a client takes over gRPC is what its coordinator signed, and nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.doors.grpc_remote import connect
from client.doors.trust import Known, Trust
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import MetaLearner, Provenance, encode_meta_learner, encode_weights
from fedfree.errors import FedFreeError, NotReadyError, SignatureError
from fedfree.host.files import PRIVATE
from fedfree.host.starts import keep_start
from fedfree.signing import make_key, public_key, sign
from fedfree.start import LoadedStart
from server.config import ServerConfig
from server.doors.tokens import Tokens
from server.storage.broadcast import Broadcast
from server.storage.run_directory import RunDirectory
from tests.doors import serving

SPEC = InputSpec(channels=1, height=16, width=16)


def meta_learner(seed: int = 0) -> MetaLearner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = encode_weights(build(Architecture(), num_classes=3, input=SPEC))
    provenance = Provenance(("ab" * 32,), "cd" * 32, 0, "fedfree")
    return MetaLearner(Architecture(), 3, SPEC, Recipe(), provenance, weights)


EDITS: dict[str, Callable[[MetaLearner], MetaLearner]] = {
    "random weights": lambda sent: replace(sent, weights=meta_learner(9).weights),
    "another recipe": lambda sent: replace(sent, recipe=Recipe("ridge")),
    "an empty provenance": lambda sent: replace(sent, provenance=replace(sent.provenance, contributions=())),
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.toml").write_text(ServerConfig().to_toml())
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def fetch(run: RunDirectory, tmp_path: Path) -> Iterator[Callable[..., MetaLearner]]:
    """Fetch over gRPC, with or without a key that is pinned; what is known is kept from call to call."""
    token = Tokens(run.tokens).add("org-1")
    with serving(run) as address:

        def call(pinned: str | None = None, *, out: str = "m", allow_older: bool = False) -> MetaLearner:
            trust = Trust(tmp_path / "known.json", pinned, allow_older)
            with connect(address, None, token, trust) as remote:
                remote._sleep = lambda seconds: None
                files = (tmp_path / f"{out}.{end}" for end in ("safetensors", "manifest.pb", "signature.pb"))
                return remote.fetch(*files)

        def call_start(pinned: str | None, folder: Path) -> None:
            with connect(address, None, token, Trust(tmp_path / "known.json", pinned)) as remote:
                remote.fetch_start(folder)

        call.start = call_start  # type: ignore[attr-defined]
        yield call


def forge(run: RunDirectory, forged: MetaLearner, signature: bytes | None) -> None:
    """Somebody who can write what the server hands out puts something else there."""
    files = {run.manifest.name: encode_meta_learner(forged), run.weights.name: forged.weights}
    for name, content in files.items():
        (run.path / name).unlink()
        (run.path / name).write_bytes(content)
    (run.path / run.signature.name).unlink(missing_ok=True)
    if signature is not None:
        (run.path / run.signature.name).write_bytes(signature)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("signature", ["kept", "missing", "of another key"])
def test_an_edited_meta_learner_is_not_handed_out(
    run: RunDirectory,
    fetch: Callable[..., MetaLearner],
    tmp_path: Path,
    edit: Callable[..., MetaLearner],
    signature: str,
) -> None:
    run.write_meta_learner(meta_learner())
    kept, forged = run.signature.read_bytes(), edit(meta_learner())
    other = sign("meta-learner", encode_meta_learner(forged), make_key(), 1 << 40)
    forge(run, forged, {"kept": kept, "missing": None, "of another key": other}[signature])
    with pytest.raises(FedFreeError, match="not signed by its coordinator"):
        fetch()
    assert not list(tmp_path.glob("m.*"))


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("kept", "does not hold for the meta-learner"),
        ("missing", "is not signed"),
        ("other", "known here is"),
    ],
)
def test_what_was_edited_on_the_way_is_refused_before_its_weights_are_fetched(
    run: RunDirectory,
    fetch: Callable[..., MetaLearner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edit: Callable[..., MetaLearner],
    signature: str,
    words: str,
) -> None:
    run.write_meta_learner(meta_learner())
    kept, forged = run.signature.read_bytes(), edit(meta_learner())
    forge(run, forged, None)
    other = sign("meta-learner", encode_meta_learner(forged), make_key(), 1 << 40)
    handed = {"kept": kept, "missing": b"", "other": other}[signature]
    monkeypatch.setattr(RunDirectory, "published_signature", lambda *_, **__: handed)
    with pytest.raises(SignatureError, match=words):
        fetch(run.signing_key.public)
    assert not list(tmp_path.glob("m.*"))


def test_the_first_key_is_believed_written_down_and_then_asked_for(
    run: RunDirectory,
    fetch: Callable[..., MetaLearner],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run.write_meta_learner(meta_learner())
    assert fetch() == meta_learner()
    own = run.signing_key.public
    assert f"signs with the key {own}, seen for the first time" in caplog.text
    assert Known.model_validate_json((tmp_path / "known.json").read_text()).key == own
    assert (run.path / "signing.json").stat().st_mode & 0o777 == PRIVATE
    assert (tmp_path / "m.signature.pb").read_bytes() == run.signature.read_bytes()
    (run.path / "signing.json").unlink()
    run.write_meta_learner(meta_learner(1))
    with pytest.raises(SignatureError) as refused:
        fetch()
    assert all(each in str(refused.value) for each in (own, run.signing_key.public, "remove", "known.json"))


def test_a_key_that_a_person_names_is_asked_for_from_the_first_time_on(
    run: RunDirectory, fetch: Callable[..., MetaLearner], tmp_path: Path
) -> None:
    run.write_meta_learner(meta_learner())
    other = public_key(make_key())
    with pytest.raises(SignatureError, match=f"known here is {other}.*name that as its key"):
        fetch(other)
    assert not (tmp_path / "known.json").exists()
    assert fetch(run.signing_key.public) == meta_learner()


def test_an_older_meta_learner_is_refused_unless_told(
    run: RunDirectory, fetch: Callable[..., MetaLearner]
) -> None:
    older = encode_meta_learner(meta_learner(0))
    run.write_meta_learner(meta_learner(0))
    signature = run.signature.read_bytes()
    run.write_meta_learner(meta_learner(1))
    assert fetch() == meta_learner(1)
    forge(run, meta_learner(0), signature)
    assert run.published_signature(older) == signature
    with pytest.raises(SignatureError, match=r"was here before.*--allow-older"):
        fetch(out="older")
    assert fetch(out="older", allow_older=True) == meta_learner(0)
    with pytest.raises(SignatureError):
        fetch(out="older")


def test_a_clock_that_goes_back_makes_no_older_meta_learner(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []
    for time in (2_000_000_000.0, 1.0, 2.0):
        monkeypatch.setattr("server.storage.signing_key.time.time", lambda now=time: now)
        manifest = run.write_meta_learner(meta_learner())
        trust = Trust(run.path / "known.json")
        numbers.append(trust.check("meta-learner", manifest, run.signature.read_bytes()).number)
    assert numbers == [2_000_000_000, 2_000_000_001, 2_000_000_002]


def test_who_knows_an_old_key_follows_to_the_new_one_and_not_back(
    run: RunDirectory, fetch: Callable[..., MetaLearner], tmp_path: Path
) -> None:
    run.write_meta_learner(meta_learner())
    assert fetch() == meta_learner()
    before = (run.path / "signing.json").read_bytes()
    first, _ = run.signing_key.rotate()
    _, last = run.signing_key.rotate()
    assert fetch() == meta_learner(), "what was published before is signed anew"
    assert Known.model_validate_json((tmp_path / "known.json").read_text()).key == last
    assert fetch(first) == meta_learner(), "who pinned the first key need not hear of the others"
    (run.path / "signing.json").write_bytes(before)
    run.write_meta_learner(meta_learner(1))
    for pinned in (None, first):
        with pytest.raises(SignatureError, match=f"by the key {first}, known here is {last}"):
            fetch(pinned)


def test_a_start_is_signed_likewise(
    run: RunDirectory,
    fetch: Callable[..., MetaLearner],
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = make_start()
    keep_start(tmp_path / "own", begun.start, begun.weights)
    run.adopt_start(tmp_path / "own")
    other = public_key(make_key())
    with pytest.raises(SignatureError, match=f"the start is signed by .*, known here is {other}"):
        fetch.start(other, tmp_path / "start")  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "start_signature", lambda *_: b"")
        with pytest.raises(SignatureError, match="the start is not signed"):
            fetch.start(None, tmp_path / "start")  # type: ignore[attr-defined]
    assert not list((tmp_path / "start").glob("*"))
    fetch.start(run.signing_key.public, tmp_path / "start")  # type: ignore[attr-defined]
    assert (tmp_path / "start" / "start.pb").is_file()


def test_a_withdrawn_meta_learner_leaves_no_signature(run: RunDirectory) -> None:
    run.write_meta_learner(meta_learner())
    run.withdraw_meta_learner()
    assert not run.signature.exists()
    with pytest.raises(NotReadyError):
        Broadcast.meta_learner(run)
