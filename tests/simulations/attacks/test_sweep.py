"""``fedfree-sim privacy sweep``: end to end in miniature, that it continues, and its table by hand."""

import csv
import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from client.config import ClientConfig, DataConfig, TrainingConfig
from client.data.image_set import ImageSet
from client.rehearsing.attacks import EpsilonBound, Exposure, Interval
from client.rehearsing.rehearse import trainer_of
from client.training.pretrain import pretrain
from fedfree.errors import ConfigError
from server.config import InvertConfig, ServerConfig
from server.storage.store import Store
from simulations.attacks.sweep import (
    SMALL,
    Audited,
    Level,
    at_epsilon,
    audit_config,
    local_accuracy,
    read_epsilons,
    sent_model,
    split_by_rank,
)
from simulations.attacks.sweep_table import kept_gain, table, values
from simulations.config import SimulationConfig
from simulations.federation import prepare as federation
from simulations.series import Measured, Run
from tests.programs import RunProgram

TINY = """
clients = 2
classes_each = 2
images_per_class = 50
training = { image_size = 16, epochs = 1, min_steps = 2, threads = 1 }
server = { iterations = 1, threads = 1 }
episodes = 2
n_way = 2
n_query = 2
"""


def write_tree(root: Path, *, train: int, classes: int = 3) -> Path:
    """Noise of classes told apart by their shade; seven images each to validate and to test on."""
    generator = torch.Generator().manual_seed(0)
    for split, images in (("meta_train", train), ("meta_val", 7), ("meta_test", 7)):
        for label in range(classes):
            folder = root / split / f"{split}{label}"
            folder.mkdir(parents=True)
            for index in range(images):
                noise = torch.randint(0, 40, (16, 16), generator=generator)
                picture = Image.fromarray((noise + 80 * label).to(torch.uint8).numpy())
                picture.save(folder / f"{index:03d}.png")
    return root


@pytest.fixture
def small_server(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = federation.server_config

    def cut(config: SimulationConfig) -> ServerConfig:
        server = whole(config)
        invert = InvertConfig(images_per_model=12, steps=1, generator_width=4, latent_size=16)
        learn = server.learn.model_copy(update={"batch_size": 16, "compositions": 4, "relational_tasks": 1})
        return server.model_copy(update={"invert": invert, "learn": learn})

    monkeypatch.setattr(federation, "server_config", cut)


@pytest.fixture
def run_sweep(run_program: RunProgram) -> RunProgram:
    return partial(run_program, "simulations", "privacy", "sweep")


@pytest.mark.usefixtures("small_server")
def test_a_sweep_from_a_start_counts_gains_over_the_start_and_audits_models_that_began_there(
    run_sweep: RunProgram, tmp_path: Path, start: Path
) -> None:
    config, out = tmp_path / "tiny.toml", tmp_path / "sweep"
    config.write_text(f'start = "{start}"\n{TINY}')
    options = ("--config", config, "--dataset", write_tree(tmp_path / "images", train=60), "--out", out)
    short = ("--epsilon", "inf,8", "--seeds", 1, "--shadows", 4, "--cache", tmp_path / "cache")
    assert run_sweep(*options, *short)[0] == 0
    record = json.loads((out / "sweep.json").read_text())
    assert "public start 1-shot" in {column["title"] for column in record["columns"]}
    rows = record["details"]["rows"]
    assert all(row["2way1shot_public_start"] > 0 and row["local_mean"] >= 0 for row in rows)


@pytest.mark.usefixtures("small_server")
def test_a_sweep_measures_every_epsilon_and_a_second_start_trains_nothing(
    run_sweep: RunProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, out = tmp_path / "tiny.toml", tmp_path / "sweep"
    config.write_text(TINY)
    options = ("--config", config, "--dataset", write_tree(tmp_path / "images", train=60), "--out", out)
    short = ("--epsilon", "inf,8", "--seeds", 1, "--shadows", 4, "--cache", tmp_path / "cache")
    status, printed, _ = run_sweep(*options, *short)
    assert status == 0 and "not evidence of safety" in " ".join(printed.split())
    names = ("few-shot", "local", "canaries")
    pictures = {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}
    assert {path.name for path in out.iterdir()} >= pictures | {"sweep.json", "sweep.md", "sweep.csv"}
    rows = json.loads((out / "sweep.json").read_text())["details"]["rows"]
    assert [row["epsilon"] for row in rows] == ["8", "inf"]
    assert [row["2way1shot_gain_kept"] for row in rows][1] in (1.0, None)
    assert rows[0]["highest_tpr_at_1_percent"] < rows[1]["highest_tpr_at_1_percent"] == 1
    assert all(0 <= row["local_mean"] <= 100 for row in rows)
    with (out / "sweep.csv").open() as file:
        assert [row["epsilon"] for row in csv.DictReader(file)] == ["8", "inf"]
    ledgers = {path.relative_to(out) for path in out.rglob("*.sqlite")}
    assert {str(path.parent) for path in ledgers} <= {"8/0/organisations", "inf/0/organisations"}

    for work in ("fit", "train_privately"):
        for module in ("client.training.pretrain", "client.rehearsing.rehearse"):
            monkeypatch.setattr(f"{module}.{work}", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("simulations.series.simulate", lambda *_, **__: pytest.fail("run again"))
    assert run_sweep(*options, *short)[0] == 0
    assert json.loads((out / "sweep.json").read_text())["details"]["rows"] == rows


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_local_accuracy_is_that_of_unseen_images_by_what_the_store_holds_without_the_clients_cache(
    tmp_path: Path, seed: int
) -> None:
    tree = write_tree(tmp_path / "images", train=30)
    organisation = ClientConfig(
        data=DataConfig(source=tree, split="meta_train", images_per_class=20),
        training=TrainingConfig(image_size=16, epochs=1, min_steps=30, batch_size=18, threads=1),
        cache=tmp_path / "cache" / "models",
        ledger=tmp_path / "ledger.sqlite",
        seed=seed,
    )
    store = Store(tmp_path / "store")
    other = organisation.model_copy(update={"seed": 10 + seed, "ledger": tmp_path / "other.sqlite"})
    for each in (organisation, other):
        store.receive(*pretrain(each))
    shutil.rmtree(organisation.cache)
    assert local_accuracy(store, organisation) > 0.9
    assert local_accuracy(store, other) > 0.9
    models = [sent_model(store, each) for each in (organisation, other)]
    assert models[0] is not None and models[1] is not None and models[0].weights != models[1].weights


def test_local_accuracy_is_unknown_where_every_image_is_trained_on_or_nothing_was_sent(
    tmp_path: Path,
) -> None:
    tree = write_tree(tmp_path / "images", train=20)
    training = TrainingConfig(image_size=16, epochs=1, min_steps=1, batch_size=18, threads=1)
    data = DataConfig(source=tree, split="meta_train", images_per_class=20)
    paths = {"cache": tmp_path / "cache", "ledger": tmp_path / "ledger.sqlite"}
    organisation, store = ClientConfig(data=data, training=training, **paths), Store(tmp_path / "store")
    assert math.isnan(local_accuracy(store, organisation))
    store.receive(*pretrain(organisation))
    assert sent_model(store, organisation) is not None
    assert math.isnan(local_accuracy(store, organisation))


def test_images_to_spare_are_the_last_of_each_class() -> None:
    images = ImageSet(
        torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1),
        torch.tensor([0, 0, 0, 1, 2, 2, 2]),
        ("a", "b", "c"),
    )
    own, spare = split_by_rank(images, 2)
    assert own.images.flatten().tolist() == [0, 1, 3, 4, 5]
    assert spare.images.flatten().tolist() == [2, 6]
    assert spare.labels.tolist() == [0, 2]


def fake_level(epsilon: float, *means: float, found: Interval | None, local: tuple[float, ...]) -> Level:
    """Federations with these 1-shot accuracies, 30 without contributions."""

    def score(mean: float) -> dict[str, float]:
        return {"mean": mean, "ci95": 0.5, "gain": 0.0, "gain_ci95": 0.0}

    config = at_epsilon(SimulationConfig.parse({"architectures": "conv4-group"}, origin="test"), epsilon)
    federations = [
        {
            "few_shot": {"5way1shot": score(mean)},
            "baselines": {"random_init": {"5way1shot": score(30.0)}},
            "seconds": {"learn": 60.0},
            "commit": "abc1234",
            "finished": "2026-11-22T10:00:00+00:00",
            "hardware": {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None},
        }
        for mean in means
    ]
    runs = tuple(Run(Path("runs") / str(seed), config, each) for seed, each in enumerate(federations))
    exposure = Exposure(320, 320, Interval(0.5, 0.45, 0.55), found, None)
    bound = EpsilonBound(0.25, 2.0, 1e-5, 40, 20, 16)
    ceiling = 1.0 if math.isinf(epsilon) else 0.0204
    return Level(epsilon, Measured(f"{epsilon:g}", runs), local, Audited(exposure, exposure, bound, ceiling))


def test_the_table_holds_means_shares_of_the_gain_and_the_ceiling_of_any_attack() -> None:
    weak = fake_level(1, 34.0, 36.0, found=Interval(0.015, 0.0, 0.03), local=(60.0, 70.0))
    whole = fake_level(math.inf, 49.0, 51.0, found=None, local=())
    drawn = table([weak, whole])
    assert dict(zip(drawn.titles, drawn.texts[0], strict=True)) == {
        "ε": "1",
        "meta-learner 1-shot": "35.0 ± 0.5",
        "random init 1-shot": "30.0 ± 0.5",
        "gain kept 1-shot": "25 %",
        "local accuracy": "65.0 (60.0–70.0)",
        "canary AUC": "0.50 (0.45–0.55)",
        "canary TPR at 1 % FPR": "1.5 (0.0–3.0) %",
        "of any attack": "≤ 2.0 %",
        "ε ≥ (ceiling)": "0.25 (2.00)",
    }
    assert drawn.texts[1][3:7] == ("100 %", "—", "0.50 (0.45–0.55)", "—")
    assert drawn.texts[1][7] == "≤ 100.0 %"
    assert kept_gain(weak, [weak], "5way1shot") is None
    numbers = values([weak, whole])
    assert numbers[0]["5way1shot_gain_kept"] == pytest.approx(0.25)
    assert numbers[0]["canary_tpr_at_1_percent_high"] == 0.03
    assert numbers[1]["canary_tpr_at_1_percent"] is None and numbers[1]["local_mean"] is None
    assert numbers[0].keys() == numbers[1].keys()


def test_everything_but_epsilon_is_the_same_at_every_epsilon() -> None:
    base = SimulationConfig.parse({**SMALL, "dataset": "a.zip"}, origin="test")
    assert (base.clients, base.images_per_class, base.server.iterations) == (8, 60, 8)
    at_1, at_inf = at_epsilon(base, 1), at_epsilon(base, math.inf)
    assert [str(each) for each in at_inf.dealt_architectures] == ["conv4-32-group"]
    assert at_1.privacy.epsilon == 1 and not at_inf.privacy.is_dp
    assert at_1.model_copy(update={"privacy": at_inf.privacy}) == at_inf


def test_the_audited_models_begin_and_are_trained_as_the_federations_models(tmp_path: Path) -> None:
    weights = tmp_path / "public.safetensors"
    weights.write_bytes(b"some")
    training = TrainingConfig(initial_weights=weights, device="cpu")
    pretrain = audit_config(SimulationConfig(training=training), 16).training
    assert (pretrain.initial_weights, pretrain.device) == (weights, "cpu")
    before = trainer_of(pretrain).config_hash
    weights.write_bytes(b"others")
    assert trainer_of(pretrain).config_hash != before


@pytest.mark.parametrize("text", ["", "1,,3", "one", "0,1", "-1", "nan"])
def test_what_is_no_list_of_epsilons_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected numbers above 0 separated by commas"):
        read_epsilons(text)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epsilon", "1,99", "promises nothing"),
        ("--dataset", "a.zip,b.zip", "one data set"),
        ("--dataset", "nowhere.zip", "no such data set or path"),
        ("--shadows", "3", "--shadows"),
    ],
)
def test_wrong_options_are_one_line_before_a_federation_runs(
    run_sweep: RunProgram, tmp_path: Path, option: str, value: str, message: str
) -> None:
    status, _, err = run_sweep("--out", tmp_path / "sweep", option, value)
    assert status == 2 and message in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "sweep").exists()
