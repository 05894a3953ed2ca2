"""An audit runs from data set to table, attacks everything that leaves, and continues after a kill."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from client.config import TrainingConfig
from fedfree.codec import MetaLearner
from fedfree.host.starts import describe_folder
from server.config import InvertConfig, ServerConfig
from simulations.attacks import audit as audits
from simulations.attacks.config import AuditConfig
from simulations.attacks.downstream import distil_student, learn_meta_learner
from simulations.attacks.memorisation import LABEL
from simulations.commands import privacy as audit_cli
from simulations.reporting.record import Record
from tests.programs import RunProgram


def write_tree(root: Path, *, classes: int = 4, images: int = 50) -> Path:
    """Noise of classes told apart by their shade."""
    generator = torch.Generator().manual_seed(0)
    for label in range(classes):
        (root / f"class{label}").mkdir(parents=True)
        for index in range(images):
            noise = torch.randint(0, 60, (16, 16), generator=generator)
            picture = Image.fromarray((noise + 40 * label).to(torch.uint8).numpy())
            picture.save(root / f"class{label}" / f"{index}.png")
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of the audit that take a second."""
    whole = AuditConfig._server

    def cut(self: AuditConfig, **changes: Any) -> ServerConfig:
        config = whole(self, **changes)
        invert = InvertConfig(images_per_model=12, steps=1, generator_width=4, latent_size=16)
        learn = config.learn.model_copy(update={"batch_size": 16, "compositions": 4, "relational_tasks": 1})
        return config.model_copy(update={"iterations": 2, "invert": invert, "learn": learn})

    monkeypatch.setattr(AuditConfig, "_server", cut)
    monkeypatch.setattr(
        audits, "distil_student", lambda *given, steps, start: distil_student(*given, steps=2, start=start)
    )


@pytest.fixture
def run_audit(run_program: RunProgram) -> RunProgram:
    return partial(run_program, "simulations", "privacy", "audit")


@pytest.mark.usefixtures("small")
def test_everything_that_leaves_is_attacked_and_a_second_start_repeats_nothing(
    run_audit: RunProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree, out = write_tree(tmp_path / "images"), tmp_path / "audit"
    options = ("--dataset", tree, "--classes", 2, "--shadows", 4, "--meta-learner", 4, "--out", out)
    tiny = ("--image-size", 16, "--epochs", 1, "--set", "training.min_steps=1", "--threads", 1)
    status, printed, _ = run_audit(*options, *tiny)
    printed = " ".join(printed.split())
    assert status == 0 and "…" not in printed
    assert LABEL in printed and "An attack that fails is not evidence of safety" in printed
    found = json.loads((out / "audit.json").read_text())
    assert found["config"]["privacy"]["epsilon"] is None and "nothing limits" in found["privacy"]
    names = [each["target"] for each in found["findings"]]
    assert names == ["model", "student", "meta-learner"]
    for finding in found["findings"]:
        assert finding["models"] == 4
        for attacks in finding["exposures"].values():
            assert all(0 <= attack["auc"]["value"] <= 1 for attack in attacks.values())
    assert len(found["memorisation"]["measures"]) == 3
    exposure = Record.load(out / "exposure.json")
    assert [row["target"] for row in exposure.rows] == names
    online = found["findings"][0]["exposures"]["canaries"]["LiRA online"]
    assert exposure.rows[0]["canaries_auc"] == online["auc"]
    assert {path.name for path in out.iterdir()} >= {"roc.png", "roc.svg", "pairs.png"}

    for work in ("recover_images", "learn_meta_learner"):
        monkeypatch.setattr(audits, work, lambda *_: pytest.fail("done again"))
    monkeypatch.setattr(audit_cli, "draw_pictures", lambda *_: [])
    assert run_audit(*options, *tiny)[0] == 0
    again = json.loads((out / "audit.json").read_text())
    assert again["findings"] == found["findings"] and again["memorisation"] == found["memorisation"]


@pytest.mark.usefixtures("small")
def test_from_a_start_everything_attacked_began_there(
    run_audit: RunProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Path
) -> None:
    learned: list[MetaLearner] = []

    def learn(*given: Any) -> MetaLearner:
        learned.append(learn_meta_learner(*given))
        return learned[-1]

    monkeypatch.setattr(audits, "learn_meta_learner", learn)
    tree, out = write_tree(tmp_path / "images"), tmp_path / "audit"
    options = ("--dataset", tree, "--classes", 2, "--shadows", 4, "--meta-learner", 4, "--out", out)
    tiny = ("--start", start, "--epochs", 1, "--set", "training.min_steps=1", "--threads", 1)
    assert run_audit(*options, *tiny)[0] == 0
    identity = describe_folder(start).sha256
    assert len(learned) == 4 and {each.provenance.start for each in learned} == {identity}
    rows = Record.load(out / "exposure.json").rows
    assert [row["target"] for row in rows] == ["model", "student", "meta-learner"]


def test_an_audit_under_privacy_trains_with_group_norm_for_its_own_epochs(
    run_audit: RunProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs: list[AuditConfig] = []

    def stop(run: Path, config: AuditConfig, **_: object) -> None:
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_cli, "audit_organisation", stop)
    for options in (("--epsilon", 3, "--delta", 1e-4, "--epochs", 7), ("--epochs", 7)):
        run_audit("--out", tmp_path / "audit", *options)
    private, plain = configs
    assert str(private.training.architecture) == "conv4-32-group"
    assert (private.privacy.epsilon, private.privacy.delta, private.training.epochs) == (3, 1e-4, 7)
    assert str(plain.training.architecture) == "conv4-32-batch"
    assert not plain.privacy.is_dp and plain.training.epochs == 7


def test_another_organisations_models_are_not_audited(tmp_path: Path) -> None:
    config = AuditConfig(
        dataset=str(write_tree(tmp_path / "images")),
        classes=2,
        meta_learner=4,
        companions=2,
        training=TrainingConfig(image_size=16),
    )
    audited, *companions = audits.load_organisations(config)
    assert len(companions) == 2
    assert all(len(each) == len(audited) == 100 for each in companions)
    alone = audits.load_organisations(config.model_copy(update={"meta_learner": 0}))
    assert [each.fingerprint() for each in alone] == [audited.fingerprint()]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--shadows", 3, "shadows"),
        ("--meta-learner", 2, "at least 4 federations"),
        ("--architecture", "perceptron", "unknown architecture"),
        ("--dataset", "nowhere.zip", "no such data set or path"),
    ],
)
def test_wrong_options_are_one_line(
    run_audit: RunProgram, tmp_path: Path, option: str, value: object, message: str
) -> None:
    status, _, err = run_audit("--out", tmp_path / "audit", option, value)
    assert status == 2 and message in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
