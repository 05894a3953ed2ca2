"""What an operator sees of a run, however long its file of events: numbers, a table, metrics."""

import os
import urllib.request
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_weights
from fedfree.errors import ConfigError, StorageError
from fedfree.host.channel import Address
from fedfree.statement import PrivacyStatement
from server.commands.status_table import contributions_table, status_table
from server.config import ServerConfig
from server.doors.metrics import served
from server.doors.status import LearningStatus, RunStatus, latest_events, read_learning
from server.events import Event, doubted, ignore
from server.storage.run_directory import RunDirectory, event_to_line


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "server.toml").write_text(ServerConfig().to_toml())
    return RunDirectory(tmp_path)


def record(run: RunDirectory, *events: Event) -> None:
    with run.events.open("a") as file:
        file.writelines(event_to_line(event) for event in events)


def iteration(number: int, of: int, *, at: float, **values: float) -> list[Event]:
    """What an iteration of 10 s and 400 images reports."""
    return [
        Event("learn", "recovered", {"images": 400 * number}, at - 4),
        Event("learn", "progress", {"iteration": number, "of": of, "distillation_loss": 0.5, **values}, at),
    ]


def receive(run: RunDirectory) -> str:
    spec = InputSpec(channels=1, height=16, width=16)
    torch.manual_seed(0)
    weights = encode_weights(build(Architecture(), num_classes=3, input=spec))
    contribution = Contribution(Architecture(), 3, spec, PrivacyStatement(), weights)
    return run.store().receive(encode_contribution(contribution), weights)


def printed(table: Table) -> str:
    console = Console(width=120, record=True)
    console.print(table)
    return console.export_text()


def test_before_anything_happened_there_is_nothing_to_tell(run: RunDirectory) -> None:
    run.recorded(ignore)(Event("collect", "progress", {"done": 1, "of": 3}))
    status = RunStatus.read(run)
    assert status == RunStatus({"received": 0, "accepted": 0, "quarantined": 0}, None, b"", "")
    assert "learning has not begun" in printed(status_table(status))


def test_the_latest_iteration_is_found_after_thousands_of_lines(run: RunDirectory) -> None:
    for number in range(1, 800):
        record(run, *iteration(number, 800, at=10.0 * number))
    assert run.events.stat().st_size > 1 << 17
    learning = read_learning(run)
    assert learning is not None
    assert (learning.iteration, learning.of, learning.images) == (799, 800, 400 * 799)
    assert learning.seconds_left == pytest.approx(10)
    assert learning.images_a_second == pytest.approx(40)


@pytest.mark.parametrize("jump", [-3600.0, 50 * 365 * 86_400.0])
def test_a_clock_that_is_set_while_a_run_learns_does_not_change_the_time_left(
    run: RunDirectory, jump: float
) -> None:
    for number in range(1, 8):
        record(run, *iteration(number, 10, at=1e9 + 10.0 * number + jump * (number > 4)))
    learning = read_learning(run)
    assert learning is not None and learning.seconds_left == pytest.approx(30)
    assert learning.images_a_second == pytest.approx(40)


def test_the_pace_is_that_since_learning_last_started(run: RunDirectory) -> None:
    record(run, *iteration(1, 9, at=10), *iteration(2, 9, at=20), Event("learn", "started", {}, 5000))
    record(run, *iteration(3, 9, at=5030))
    learning = read_learning(run)
    assert learning is not None and (learning.iteration, learning.seconds_left) == (3, None)
    record(run, *iteration(4, 9, at=5050))
    assert (read_learning(run) or learning).seconds_left == pytest.approx(5 * 20)


def test_a_line_that_is_still_being_written_is_passed_over(run: RunDirectory) -> None:
    record(run, *iteration(4, 9, at=10))
    with run.events.open("a") as file:
        file.write('{"time": "2026-11-22T12:00:00.000+00:00", "sta')
    learning = read_learning(run)
    assert learning is not None and (learning.iteration, learning.of) == (4, 9)


def test_the_table_tells_contributions_losses_and_time_left(run: RunDirectory) -> None:
    receive(run)
    record(run, *iteration(1, 7, at=60), *iteration(2, 7, at=120))
    text = printed(status_table(RunStatus.read(run)))
    facts = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    told = {name: value.strip() for name, value in (fact for fact in facts if len(fact) == 2)}
    assert told["received"] == "1"
    assert told["iteration"] == "2 of 7"
    assert "5.0 min" in told["time"]
    assert "0.5" in told["distillation"]
    assert "not published yet" in text


def test_every_contribution_is_listed_with_the_reason_of_a_refusal(run: RunDirectory) -> None:
    identity, store = receive(run), run.store()
    store.quarantine(identity, "the network's outputs do not depend on the image")
    text = printed(contributions_table(store, {}))
    assert identity[:12] in text and "quarantined" in text and "do not depend on" in text


def test_what_counts_less_says_how_much_and_why(run: RunDirectory) -> None:
    identity = receive(run)
    run.store().accept(identity)
    words = {"contribution": identity, "counts": 0.25, "evidence": "shares one vote with 3"}
    record(run, Event("learn", "doubted", words))
    text = printed(contributions_table(run.store(), doubted(run.read_events())))
    assert "counts 0.25: shares one vote with 3" in " ".join(text.split())


def test_words_of_others_in_a_reason_neither_break_the_table_nor_move_the_cursor(run: RunDirectory) -> None:
    identity, store = receive(run), run.store()
    store.quarantine(identity, "tensor [/x] [bold] \x1b[2J\nverify accepted" + "y" * 20_000)
    assert len((store.path / "quarantined" / identity / "reason.txt").read_text()) <= 1000
    text = printed(contributions_table(store, {}))
    assert "[/x] [bold]" in text and "\x1b" not in text


def test_metrics_say_what_the_status_says(run: RunDirectory) -> None:
    run.store().accept(receive(run))
    record(run, *iteration(1, 7, at=60, gpu_bytes=123), *iteration(2, 7, at=120, gpu_bytes=456))
    run.write_error(ConfigError("no"))
    with served(run, "127.0.0.1:0") as address, urllib.request.urlopen(f"http://{address}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
        samples = {(each.name, *each.labels.values()): each.value for f in families for each in f.samples}
    assert samples == {
        ("fedfree_contributions", "received"): 0,
        ("fedfree_contributions", "accepted"): 1,
        ("fedfree_contributions", "quarantined"): 0,
        ("fedfree_meta_learner_published",): 0,
        ("fedfree_run_failed",): 1,
        ("fedfree_loss", "distillation_loss"): 0.5,
        ("fedfree_iteration",): 2,
        ("fedfree_iterations",): 7,
        ("fedfree_recovered_images",): 800,
        ("fedfree_recovered_images_per_second",): pytest.approx(400 / 60),
        ("fedfree_remaining_seconds",): pytest.approx(300),
        ("fedfree_gpu_memory_bytes",): 456,
    }


def test_metrics_on_a_port_that_is_taken_are_refused(run: RunDirectory) -> None:
    with (
        served(run, "127.0.0.1:0") as address,
        pytest.raises(ConfigError, match=f"cannot serve metrics on {address}"),
        served(run, str(address)),
    ):
        pass


def test_without_an_address_no_metrics_are_served(run: RunDirectory) -> None:
    with served(run, None) as address:
        assert address is None


def test_a_run_keeps_its_name_and_shares_it_with_nobody(run: RunDirectory, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "server.toml").write_text(ServerConfig().to_toml())
    assert run.id == RunDirectory(run.path).id != RunDirectory(other).id
    assert len(run.id) == 12


def test_the_time_left_is_unknown_before_two_iterations() -> None:
    assert LearningStatus(1, 5).seconds_left is None
    assert LearningStatus(1, 5, seconds_an_iteration=2).seconds_left == 8


def test_an_address_is_taken_apart_once(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match="is not an address"), served(run, "nowhere"):
        pass
    assert Address.parse("127.0.0.1:9100").port == 9100


def test_a_pipe_in_the_place_of_the_events_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    with pytest.raises(StorageError, match="it is a pipe"):
        latest_events(tmp_path / "events.jsonl", 100)
