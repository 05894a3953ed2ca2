"""One line an event, for people or for machines."""

import json

import pytest

from fedfree.host.logs import log_to_stderr
from server.events import Event, log_event

EVENT = Event("learn", "progress", {"iteration": 3, "distillation_loss": 0.123456})


def test_an_event_is_one_line_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(json_lines=False)
    log_event(EVENT)
    time, rest = capsys.readouterr().err.split(" ", 1)
    assert time.endswith("Z")
    assert rest == "INFO learn progress iteration=3 distillation_loss=0.1235\n"


def test_an_event_is_one_json_object_with_its_values_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(json_lines=True)
    log_event(EVENT)
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert (fields["stage"], fields["event"], fields["level"]) == ("learn", "progress", "INFO")
    assert (fields["iteration"], fields["distillation_loss"]) == (3, 0.123456)
