"""The rehearsal finds memorised canaries, nothing where nothing leaks, and continues after a kill."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.config import PrivacyConfig, TrainingConfig
from client.data.image_set import ImageSet
from client.rehearsing.attacks import ATTACKS, ONLINE, Attack, Floats, Mask
from client.rehearsing.rehearse import (
    CANARIES,
    NATURAL,
    Finding,
    Plan,
    Target,
    Trainer,
    attack_ceiling,
    evidence_on,
    examine,
    make_plan,
    score_models,
    train_shadows,
    trainer_of,
)
from client.training.cache import MANIFEST, WEIGHTS
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import (
    Contribution,
    decode_contribution,
    encode_tensors,
    encode_weights,
    read_tensors,
    sha256,
)
from fedfree.errors import DataError, ExtensionError, PrivacyError
from fedfree.host.starts import write_start
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement
from tests.programs import RunProgram

OVERFITTING = TrainingConfig(
    image_size=16, epochs=30, min_steps=1, batch_size=24, crop_padding=0, weight_decay=0.0, threads=1
)
PRIVATE = OVERFITTING.model_copy(update={"architecture": Architecture(norm="group")})


def make_images(count: int = 120) -> ImageSet:
    """Noise in three shades: the class is easy, and every image is unlike the others."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 100, (count, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    return ImageSet((noise + 70 * labels[:, None, None, None]).to(torch.uint8), labels, ("a", "b", "c"))


def measure(trainer: Trainer, cache: Path, *, images: int = 120) -> Finding:
    plan = make_plan(make_images(images), shadows=6, canary_fraction=0.3, seed=0)
    models = train_shadows(plan, trainer, cache=cache, seed=0)
    return examine(plan, score_models(plan, models), delta=1e-5)


def untrained(images: ImageSet, seed: int) -> Contribution:
    """A network that has not looked at its images."""
    torch.manual_seed(seed % 2**31)
    spec = InputSpec(channels=1, height=16, width=16)
    config = OVERFITTING.architecture
    network = build(config, num_classes=images.num_classes, input=spec)
    return Contribution(config, images.num_classes, spec, PrivacyStatement(), encode_weights(network))


def test_an_overfit_model_gives_its_canaries_away(tmp_path: Path) -> None:
    finding = measure(trainer_of(OVERFITTING), tmp_path)
    canaries = finding.exposures[CANARIES][ONLINE]
    assert canaries.auc.value > 0.9
    assert canaries.auc.value > finding.exposures[NATURAL][ONLINE].auc.value
    assert finding.bound.epsilon > 0.2


def test_a_model_of_epsilon_one_does_not_give_its_canaries_away(tmp_path: Path) -> None:
    """The same images and training as those of the overfit model, and enough canaries to be sure of it."""
    trainer = trainer_of(PRIVATE.model_copy(update={"epochs": 6}), PrivacyConfig(epsilon=1))
    finding = measure(trainer, tmp_path, images=400)
    assert finding.exposures[CANARIES][ONLINE].auc.value < 0.6


def test_a_model_that_never_saw_its_images_gives_nothing_away(tmp_path: Path) -> None:
    finding = measure(Trainer(untrained, "untrained"), tmp_path, images=600)
    for attacks in finding.exposures.values():
        for found in attacks.values():
            assert found.auc.value == pytest.approx(0.5, abs=0.06)
    assert finding.bound.epsilon == 0


def test_canaries_are_mislabelled_and_no_other_image_is() -> None:
    images = make_images()
    plan = make_plan(images, shadows=4, canary_fraction=0.25, seed=1)
    assert torch.equal(plan.images.labels != images.labels, plan.canaries)
    assert plan.canaries.sum() == 30


def test_halves_are_fair_and_independent() -> None:
    plan = make_plan(make_images(3000), shadows=8, seed=2)
    coins = plan.members.double()
    assert (coins.mean(1) - 0.5).abs().max() < 4 * 0.5 / 3000**0.5
    correlations = torch.corrcoef(coins) - torch.eye(8)
    assert correlations.abs().max() < 4 / 3000**0.5
    assert len(plan.training_images(0)) + len(plan.unseen_images(0)) == 3000


def test_a_rehearsal_that_was_killed_loses_only_the_model_in_training(tmp_path: Path) -> None:
    plan = make_plan(make_images(), shadows=4, seed=0)
    calls = 0

    def killed_at_the_third(images: ImageSet, seed: int) -> Contribution:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return untrained(images, seed)

    trainer = Trainer(killed_at_the_third, "hash")
    with pytest.raises(KeyboardInterrupt):
        train_shadows(plan, trainer, cache=tmp_path, seed=0)
    models = train_shadows(plan, trainer, cache=tmp_path, seed=0)
    assert calls == 5
    whole = train_shadows(plan, Trainer(untrained, "hash"), cache=tmp_path / "elsewhere", seed=0)
    assert models == whole


def test_another_configuration_trains_other_models(tmp_path: Path) -> None:
    plan = make_plan(make_images(), shadows=4, seed=0)
    for name in ("one", "another"):
        train_shadows(plan, Trainer(untrained, name), cache=tmp_path, seed=0)
    assert len(list(tmp_path.iterdir())) == 8


def test_too_few_images_or_shadows_are_refused() -> None:
    with pytest.raises(DataError, match="at least 4 shadows, got 3"):
        make_plan(make_images(), shadows=3, seed=0)
    with pytest.raises(DataError, match="60 images are 6 canaries; fewer than 10"):
        make_plan(make_images(60), shadows=4, seed=0)


def write_folder(root: Path) -> Path:
    images = make_images(102)
    for index, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        folder = root / images.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{index}.png")
    return root


def test_an_organisation_rehearses_on_its_own_folder(
    run_client: RunProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("client.rehearsing.rehearse.trainer_of", lambda *_: Trainer(untrained, "untrained"))
    data, out = write_folder(tmp_path / "images"), tmp_path / "out"
    options = ("--shadows", 4, "--image-size", 16, "--epochs", 1, "--threads", 1)
    status, printed, _ = run_client("rehearse", "--data", data, "--out", out, *options)
    assert status == 0 and "not evidence of safety" in " ".join(printed.split())
    found = json.loads((out / "rehearsal.json").read_text())
    assert found["models"] == 4 and found["canaries"] == 10
    assert found["findings"][0]["exposures"]["canaries"]["LiRA online"]["tpr_at_0_1_percent"] is None


def test_a_rehearsal_from_a_start_attacks_models_that_began_there(
    run_client: RunProgram, make_start: Callable[..., LoadedStart], tmp_path: Path
) -> None:
    made = make_start(architecture="conv4-32-batch")
    made.body["blocks.0.1.running_var"][0] = 0.0  # of a dead filter, such as public weights have
    weights = encode_tensors(made.body)
    begun = LoadedStart(replace(made.start, weights_sha256=sha256(weights)), weights)
    write_start(tmp_path / "start", begun.start, begun.weights)
    data, out = write_folder(tmp_path / "images"), tmp_path / "out"
    options = ("--start", tmp_path / "start", "--shadows", 4, "--epochs", 1, "--threads", 1)
    few = ("--set", "training.min_steps=1")
    assert run_client("rehearse", "--data", data, "--out", out, *options, *few)[0] == 0
    shadow, *_ = (out / "shadows").iterdir()
    weights = decode_contribution((shadow / MANIFEST).read_bytes(), (shadow / WEIGHTS).read_bytes()).weights
    trained = read_tensors(weights, "weights")
    filters = [name for name in begun.body if name.endswith("0.weight")]
    assert all(trained[name].equal(begun.body[name]) for name in filters)  # after one epoch, the head's


def test_a_rehearsal_under_privacy_trains_by_dp_sgd_and_leaves_the_ledger_alone(
    run_client: RunProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "images")
    options = ("--shadows", 4, "--image-size", 16, "--epochs", 1, "--threads", 1)
    private = ("--epsilon", 8, "--delta", 1e-3)
    assert run_client("rehearse", "--data", data, *options, *private)[0] == 0
    found = json.loads(Path("rehearsal/rehearsal.json").read_text())
    assert found["findings"][0]["bound"]["delta"] == 1e-3
    assert "at most ε = 8 at δ = 0.001" in found["privacy"]
    assert not list(tmp_path.rglob("*.sqlite"))
    shadow, *_ = Path("rehearsal/shadows").iterdir()
    manifest, weights = (shadow / name for name in (MANIFEST, WEIGHTS))
    contribution = decode_contribution(manifest.read_bytes(), weights.read_bytes())
    assert str(contribution.architecture) == "conv4-32-group"


def test_privacy_lowers_the_ceiling_of_any_attack() -> None:
    plan = make_plan(make_images(), shadows=4, seed=0)
    strict, loose = (attack_ceiling(plan, PrivacyConfig(epsilon=each), epochs=2) for each in (0.5, 8))
    assert 0.01 < strict < 0.01 * math.exp(0.5) + 1e-4
    assert strict < loose < attack_ceiling(plan, PrivacyConfig(), epochs=2) == 1


def test_batch_norm_is_refused_in_a_rehearsal_under_privacy(tmp_path: Path) -> None:
    plan = make_plan(make_images(), shadows=4, seed=0)
    trainer = trainer_of(OVERFITTING, PrivacyConfig(epsilon=8))
    with pytest.raises(PrivacyError, match="couples the images of a batch; use conv4-group"):
        train_shadows(plan, trainer, cache=tmp_path, seed=0)


def test_a_missing_folder_is_one_line(run_client: RunProgram, tmp_path: Path) -> None:
    status, _, err = run_client("rehearse", "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert status == 2 and "nowhere" in err


def test_too_few_shadows_are_refused_before_an_image_is_read(run_program: RunProgram, tmp_path: Path) -> None:
    status, _, said = run_program("client", "rehearse", "--data", tmp_path / "none", "--shadows", "3")
    assert status == 2 and "--shadows" in said and "none" not in said


def scored(shadows: int) -> tuple[Plan, Target]:
    """Noise for the scores of each model."""
    plan = make_plan(make_images(), shadows=shadows, canary_fraction=0.25, seed=1)
    scores = np.random.default_rng(0).normal(size=tuple(plan.members.shape))
    return plan, Target("model", scores)


def rising(scores: Floats, members: Mask) -> Floats:
    members[:] = True
    return scores


def failing(scores: Floats, members: Mask) -> Floats:
    raise KeyError("no shadow")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (failing, r"the attack 'mine' failed at .*: KeyError: 'no shadow'"),
        (lambda scores, members: scores[:1], r"the attack 'mine' gave \[1, 90\], where numbers \[4, 90\]"),
        (lambda scores, members: scores * np.nan, "without NaN"),
        (lambda scores, members: None, "gave NoneType"),
    ],
)
def test_an_attack_of_ones_own_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, attack: Attack, said: str
) -> None:
    monkeypatch.setitem(ATTACKS, "mine", attack)
    plan, target = scored(shadows=4)
    with pytest.raises(ExtensionError, match=said):
        evidence_on(plan, target, NATURAL, attack)


def test_an_attack_of_ones_own_cannot_change_what_it_is_held_against() -> None:
    plan, target = scored(shadows=4)
    _, members = evidence_on(plan, target, NATURAL, rising)
    assert not members.all()
