"""The whole loop in miniature: real images, real apps, real learning, over each engine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.config import ClientConfig, DataConfig, EvaluateConfig, TrainingConfig
from fedfree.codec import decode_meta_learner
from fedfree.errors import ConfigError, FederationError
from fedfree.host.flower_process import processes
from server.config import CollectConfig, InvertConfig, MetaLearnConfig, ServerConfig
from server.events import STAGES, Event
from server.storage.run_directory import RunDirectory
from simulations.federation.engines import run_flower, run_in_process

ORGANISATIONS = 3
FAILING = 1
PRIVATE = "ward-7-patients"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _write_images(folder: Path, *, classes: int, per_class: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        pattern = rng.integers(0, 255, (16, 16))
        for index in range(per_class):
            pixels = np.clip(pattern + rng.normal(0, 20, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index}.png")
    return folder


def _organisation(run: Path, index: int, new_classes: Path) -> ClientConfig:
    images = _write_images(run / "data" / str(index), classes=3, per_class=12, seed=index)
    return ClientConfig(
        data=DataConfig(source=images),
        training=TrainingConfig(
            image_size=16, epochs=1, min_steps=2, batch_size=16, crop_padding=2, threads=1
        ),
        evaluate=EvaluateConfig(data=DataConfig(source=new_classes), episodes=3, n_query=5),
        share_metrics=index == 0,
        cache=run / "cache",
        seed=index,
    )


def _server(**collect: float) -> ServerConfig:
    return ServerConfig(
        device="cpu",
        threads=1,
        collect=CollectConfig.parse(
            {"organisations": ORGANISATIONS, "deadline_hours": 0.06, **collect}, origin="test"
        ),
        iterations=2,
        invert=InvertConfig(
            models_per_iteration=2, images_per_model=12, steps=2, latent_size=16, generator_width=8
        ),
        learn=MetaLearnConfig(compositions=8, relational_tasks=2, batch_size=8),
    )


def _prepare(run: Path, *, failing: tuple[int, ...] = (), **collect: float) -> Path:
    """A run directory with tiny images; failing organisations name images that are not there."""
    new_classes = _write_images(run / "new", classes=5, per_class=10, seed=99)
    (run / "organisations").mkdir()
    for index in range(ORGANISATIONS):
        config = _organisation(run, index, new_classes)
        if index in failing:
            config = config.model_copy(update={"data": DataConfig(source=run / PRIVATE)})
        (run / "organisations" / f"{index}.toml").write_text(config.to_toml())
    (run / "server.toml").write_text(_server(**collect).to_toml())
    return run


def _in_process(run: Path) -> list[Event]:
    events: list[Event] = []
    run_in_process(run, organisations=ORGANISATIONS, on_event=events.append)
    return events


def _flower(run: Path) -> list[Event]:
    events: list[Event] = []
    run_flower(run, organisations=ORGANISATIONS, on_event=events.append)
    return events


def _result(run: Path) -> tuple[bytes, bytes]:
    return (
        (run / "meta_learner.manifest.pb").read_bytes(),
        (run / "meta_learner.safetensors").read_bytes(),
    )


def _failures(events: list[Event], stage: str) -> list[Event]:
    return [event for event in events if (event.stage, event.kind) == (stage, "failed")]


def test_the_whole_loop_leaves_a_meta_learner_and_what_it_achieves(tmp_path: Path) -> None:
    run = _prepare(tmp_path / "run")
    events = _in_process(run)
    meta_learner = decode_meta_learner(*_result(run))
    assert len(meta_learner.provenance.contributions) == ORGANISATIONS
    assert list(dict.fromkeys(event.stage for event in events)) == list(STAGES)
    recovered = RunDirectory(run).read_recovered()
    assert recovered.keys() <= set(meta_learner.provenance.contributions)
    assert {images.dtype for images in recovered.values()} == {torch.uint8}
    shared, *others = json.loads((run / "adaptation.json").read_text())
    assert [(result["n_way"], result["n_shot"]) for result in shared["results"]] == [(5, 1), (5, 5)]
    assert [other["results"] for other in others] == [[], []]
    assert not (run / "error.txt").exists()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    runs = [_prepare(tmp_path / name) for name in ("first", "second")]
    for run in runs:
        _in_process(run)
    assert _result(runs[0]) == _result(runs[1])


def test_starting_again_continues_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _prepare(tmp_path / "run")
    _in_process(run)
    before = _result(run)
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: pytest.fail("asked again"))
    _in_process(run)
    assert _result(run) == before


def test_a_failing_organisation_is_left_out_and_named_without_its_secrets(tmp_path: Path) -> None:
    run = _prepare(tmp_path / "run", failing=(FAILING,))
    (failed,) = _failures(_in_process(run), "collect")
    assert failed.values["reason"] == "the organisation could not train: DataError"
    assert len(decode_meta_learner(*_result(run)).provenance.contributions) == ORGANISATIONS - 1
    for left in ("events.jsonl", "adaptation.json"):
        assert PRIVATE not in (run / left).read_text()


def test_too_few_contributions_end_the_run_with_the_reason(tmp_path: Path) -> None:
    run = _prepare(tmp_path / "run", failing=(0, 1))
    with pytest.raises(FederationError) as failure:
        _in_process(run)
    assert (run / "error.txt").read_text().strip() == str(failure.value)
    assert not (run / "meta_learner.manifest.pb").exists()


def test_a_bug_in_the_organisations_code_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _in_process(_prepare(tmp_path / "run"))


@pytest.mark.parametrize("run", [run_in_process, run_flower])
def test_a_run_that_would_wait_for_organisations_that_do_not_exist_is_refused(
    tmp_path: Path, run: object
) -> None:
    prepared = _prepare(tmp_path / "run", organisations=ORGANISATIONS + 1)
    with pytest.raises(ConfigError, match="expects 4 organisations, but 3"):
        run(prepared, organisations=ORGANISATIONS, on_event=print)  # type: ignore[operator]


@pytest.mark.parametrize("run", [run_in_process, run_flower])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, run: object) -> None:
    with pytest.raises(ConfigError, match="fedfree-sim prepare"):
        run(tmp_path, organisations=ORGANISATIONS, on_event=print)  # type: ignore[operator]


def _assert_nothing_is_left(run: Path) -> None:
    assert processes((run / ".flwr").resolve()) == []


def test_both_engines_publish_the_same_meta_learner_without_the_failing_organisation(tmp_path: Path) -> None:
    here, there = (_prepare(tmp_path / name, failing=(FAILING,)) for name in ("in-process", "flower"))
    events_here, events_there = _in_process(here), _flower(there)
    assert _result(there) == _result(here)
    assert _failures(events_there, "collect")[0].values["reason"] == (
        "the organisation could not train: DataError"
    )
    assert _kinds(events_there) == _kinds(events_here)
    assert len(json.loads((there / "adaptation.json").read_text())) == ORGANISATIONS
    _assert_nothing_is_left(there)


def _kinds(events: list[Event]) -> list[tuple[str, str]]:
    """What happened, in an order that does not depend on who answered first."""
    return sorted((event.stage, event.kind) for event in events)


@pytest.mark.slow
def test_a_failing_server_under_flower_is_told_with_its_reason(tmp_path: Path) -> None:
    run = _prepare(tmp_path / "run", failing=(0, 1))
    with pytest.raises(FederationError) as failure:
        _flower(run)
    assert str(failure.value) == (run / "error.txt").read_text().strip()
    _assert_nothing_is_left(run)


@pytest.mark.slow
def test_what_flower_started_is_stopped_when_this_process_is_told_to_end(tmp_path: Path) -> None:
    run = _prepare(tmp_path / "run")
    code = (
        "from pathlib import Path; from simulations.federation.engines import run_flower; "
        f"run_flower(Path({str(run)!r}), organisations={ORGANISATIONS}, on_event=print)"
    )
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-c", code], stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + 120
    while not (run / "events.jsonl").exists() and time.monotonic() < deadline:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    _assert_nothing_is_left(run)
