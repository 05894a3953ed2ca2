"""The model card of a simulated federation, whose accuracy was measured."""

from collections.abc import Mapping
from typing import Any

from fedfree.host.files import read_file, write_file
from server.storage.card import NOT_MEASURED
from server.storage.run_directory import RunDirectory
from simulations.reporting.scores import comparison, headline, task_label
from simulations.reporting.summary import measured_words
from simulations.reporting.tables import markdown_table
from simulations.reporting.words import ABSENT


def add_accuracy(run: RunDirectory, result: Mapping[str, Any]) -> None:
    """Say in the card beside the meta-learner how good it is, and how good what people would use instead."""
    file = run.published / run.card.name
    card = read_file(file).decode()
    write_file(file, card.replace(NOT_MEASURED, accuracy(result)).encode())


def accuracy(result: Mapping[str, Any]) -> str:
    """Markdown: the comparison with its intervals, and how it was measured."""
    titles = ["in %, ± 95 %", *map(task_label, result["few_shot"])]
    rows = [
        [row.label, *(score.accuracy if score else ABSENT for score in row.scores)]
        for row in comparison(result)
    ]
    return f"{markdown_table(titles, rows)}\n{measured_words(result)} {headline(result)}".rstrip()
