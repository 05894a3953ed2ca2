"""What a coordinator answers is looked at: no number, state, hash or word of it is believed unseen."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.doors.grpc_remote import Remote
from client.doors.trust import Trust
from client.limits import LimitsConfig
from fedfree.adaptation import Recipe
from fedfree.codec import MetaLearner, contribution_id, encode_meta_learner, sha256
from fedfree.errors import ContributionError, TooMuchError
from fedfree.host.starts import keep_start
from fedfree.signing import make_key, public_key, sign
from fedfree.start import LoadedStart, encode_start
from fedfree.v1 import service_pb2 as schema

MANIFEST = b"a manifest"
KEY = make_key()
ASK = [lambda each: each.contribution(MANIFEST), lambda each: each.contribute(MANIFEST, b"x")]
OWN = bytes.fromhex(contribution_id(MANIFEST))
State = schema.ContributionState


class Stub:
    """A coordinator that says what it is told to."""

    def __init__(self, *, state: Any = None, parts: list[Any] | None = None, **status: Any) -> None:
        self._state, self._parts, self._status = state, parts or [], status

    def GetStatus(self, request: Any, **options: Any) -> Any:  # noqa: N802
        return schema.GetStatusResponse(contribution=self._state, **self._status)

    def Contribute(self, requests: Any, **options: Any) -> Any:  # noqa: N802
        return schema.ContributeResponse(contribution=self._state)

    def FetchMetaLearner(self, request: Any, **options: Any) -> Any:  # noqa: N802
        self.answers = _Answers(self._parts)
        return self.answers

    FetchStart = FetchMetaLearner


class _Answers(Iterator[Any]):
    def __init__(self, parts: list[Any]) -> None:
        self._parts = iter(parts)
        self.taken: list[Any] = []
        self.ended = False

    def __next__(self) -> Any:
        self.taken.append(next(self._parts))
        return self.taken[-1]

    def cancel(self) -> None:
        self.ended = True


def remote(**answers: Any) -> Remote:
    made = Remote.__new__(Remote)
    made._stub, made._metadata, made._blame = Stub(**answers), (), None  # type: ignore[assignment]
    made._trust = Trust.at("localhost:1", public_key(KEY))
    return made


@pytest.mark.parametrize("ask", ASK, ids=["status", "contribute"])
def test_the_state_of_ones_own_contribution_is_believed_and_shown_on_one_line(
    ask: Callable[[Remote], Any],
) -> None:
    told = State(contribution_sha256=OWN, place=State.PLACE_QUARANTINED, reason="too\nlarge \x1b[2J[/x]")
    state = ask(remote(state=told))
    assert (state.identity, state.place) == (OWN.hex(), "quarantined")
    assert state.reason == "too large \N{REPLACEMENT CHARACTER}[2J[/x]"


@pytest.mark.parametrize(
    "told",
    [
        State(contribution_sha256=bytes(32), place=State.PLACE_ACCEPTED),
        State(place=State.PLACE_ACCEPTED),
        State(contribution_sha256=OWN, place=77),  # type: ignore[arg-type]
    ],
    ids=["another contribution", "none", "a state that nobody knows"],
)
@pytest.mark.parametrize("ask", ASK, ids=["status", "contribute"])
def test_an_answer_about_something_else_is_one_clear_error(ask: Callable[[Remote], Any], told: Any) -> None:
    with pytest.raises(ContributionError, match="the server was asked about the contribution"):
        ask(remote(state=told))


def test_a_hash_of_another_length_is_refused() -> None:
    assert remote(meta_learner_sha256=OWN).run().meta_learner_sha256 == OWN.hex()
    with pytest.raises(ContributionError, match="a sha256 has 32 bytes"):
        remote(meta_learner_sha256=b"x" * 1000).run()
    with pytest.raises(ContributionError, match="a sha256 has 32 bytes"):
        remote(start_sha256=OWN, further_start_sha256=[b"x"]).run()


def header(meta_learner: MetaLearner, **changes: Any) -> schema.FetchResponse:
    manifest = encode_meta_learner(meta_learner)
    signature = sign("meta-learner", manifest, KEY, 1)
    return header_of(manifest, meta_learner.weights, **({"signature": signature} | changes))


def header_of(manifest: bytes, weights: bytes, /, **changes: Any) -> schema.FetchResponse:
    says = {
        "manifest": manifest,
        "weights_bytes": len(weights),
        "weights_sha256": bytes.fromhex(sha256(weights)),
    }
    return schema.FetchResponse(header=schema.FetchHeader(**(says | changes)))


def test_what_is_sent_whole_is_fetched(tmp_path: Path, make_meta_learner: Callable[..., MetaLearner]) -> None:
    sent = make_meta_learner()
    parts = [header(sent), schema.FetchResponse(chunk=sent.weights)]
    assert remote(parts=parts).fetch(tmp_path / "w", tmp_path / "m") == sent


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": 6 << 30}, "sends from byte 6442450944"),
        ({"offset": 1}, "sends from byte 1 of"),
        ({"weights_bytes": 2 << 30}, "exceed the limit"),
        ({"weights_sha256": b"../../x"}, "a sha256 has 32 bytes"),
        ({"manifest": bytes(2 << 20)}, "a manifest of 2097152 bytes"),
    ],
    ids=["an offset of 6 GB", "an offset nobody asked for", "2 GB", "no hash", "a manifest of 2 MB"],
)
def test_numbers_that_were_not_asked_for_write_nothing(
    tmp_path: Path, make_meta_learner: Callable[..., MetaLearner], changes: dict[str, Any], words: str
) -> None:
    sent = make_meta_learner()
    parts = [header(sent, **changes), schema.FetchResponse(chunk=sent.weights)]
    with pytest.raises(ContributionError, match=words):
        remote(parts=parts).fetch(tmp_path / "w", tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_of_several_starts_another_than_the_one_asked_for_is_refused_before_its_weights(
    tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    first, other = (make_start(seed) for seed in range(2))
    hashes = [bytes.fromhex(each.start.sha256) for each in (first, other)]
    told = {"start_sha256": hashes[0], "further_start_sha256": hashes[1:]}
    signature = sign("start", encode_start(first.start), KEY, 0)
    head = header_of(encode_start(first.start), first.weights, signature=signature)
    parts = [head, schema.FetchResponse(chunk=first.weights)]
    with pytest.raises(ContributionError, match=f"asked for the start {other.start.sha256[:12]}…, and sends"):
        remote(parts=parts, **told).fetch_start(tmp_path, other.start.sha256[:9])
    assert not list(tmp_path.iterdir())
    assert remote(parts=parts, **told).fetch_start(tmp_path, first.start.sha256[:9]) == first.start


SMALL = LimitsConfig(image_size=16, recipe_steps=5)


@pytest.mark.parametrize(
    ("recipe", "limits", "setting"),
    [
        (Recipe("gradient", steps=6), SMALL, "recipe_steps"),
        (Recipe("gradient", steps=1), LimitsConfig(recipe_steps=0), "recipe_steps"),
    ],
)
def test_a_meta_learner_whose_recipe_asks_for_too_much_is_refused_before_any_of_its_weights(
    tmp_path: Path,
    make_meta_learner: Callable[..., MetaLearner],
    recipe: Recipe,
    limits: LimitsConfig,
    setting: str,
) -> None:
    sent = make_meta_learner(recipe)
    head = header(sent)
    asking = remote(parts=[head, schema.FetchResponse(chunk=sent.weights)])
    with pytest.raises(TooMuchError, match=f"limits.{setting}"):
        asking.fetch(tmp_path / "w", tmp_path / "m", limits=limits)
    answers = asking._stub.answers  # type: ignore[attr-defined]
    assert answers.taken == [head] and answers.ended, "no part with weights was asked for"
    assert not list(tmp_path.iterdir())


def test_a_meta_learner_of_larger_images_is_refused_before_any_of_its_weights(
    tmp_path: Path, make_meta_learner: Callable[..., MetaLearner]
) -> None:
    sent = make_meta_learner()
    larger = replace(sent, input=replace(sent.input, height=17))
    head = header(larger)
    asking = remote(parts=[head, schema.FetchResponse(chunk=sent.weights)])
    with pytest.raises(TooMuchError, match="asks for 17 pixels a side, and 16 is the most"):
        asking.fetch(tmp_path / "w", tmp_path / "m", limits=SMALL)
    assert asking._stub.answers.taken == [head]  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_what_asks_for_exactly_the_limits_is_fetched(
    tmp_path: Path, make_meta_learner: Callable[..., MetaLearner]
) -> None:
    sent = make_meta_learner(Recipe("gradient", steps=5))
    parts = [header(sent), schema.FetchResponse(chunk=sent.weights)]
    assert remote(parts=parts).fetch(tmp_path / "w", tmp_path / "m", limits=SMALL) == sent


def test_a_start_of_larger_images_is_refused_before_any_of_its_weights_and_where_it_is_here_too(
    tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    small = make_start()
    begun = LoadedStart(replace(small.start, input=replace(small.start.input, width=17)), small.weights)
    manifest = encode_start(begun.start)
    head = header_of(manifest, begun.weights, signature=sign("start", manifest, KEY, 0))
    told = {"start_sha256": bytes.fromhex(begun.start.sha256)}
    asking = remote(parts=[head, schema.FetchResponse(chunk=begun.weights)], **told)
    with pytest.raises(TooMuchError, match=r"the start asks for 17 pixels.* limits\.image_size"):
        asking.fetch_start(tmp_path / "start", limits=SMALL)
    assert asking._stub.answers.taken == [head]  # type: ignore[attr-defined]
    assert not list((tmp_path / "start").iterdir())
    keep_start(tmp_path / "kept", begun.start, begun.weights)
    with pytest.raises(TooMuchError, match=r"limits\.image_size"):
        asking.fetch_start(tmp_path / "kept", limits=SMALL)
    assert asking.fetch_start(tmp_path / "kept") == begun.start


def test_of_starts_that_begin_alike_none_is_fetched_and_the_candidates_are_named(
    tmp_path: Path,
) -> None:
    alike = [bytes.fromhex("ab" * 31 + last) for last in ("01", "02")]
    asking = remote(start_sha256=bytes(32), further_start_sha256=alike)
    with pytest.raises(ContributionError, match=r"^2 of .* begin with ABAB: name one of abab"):
        asking.fetch_start(tmp_path / "start", "ABAB")
    assert not (tmp_path / "start").exists()
