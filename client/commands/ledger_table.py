"""The ledger as its owner reads it: every row, and what each set of images has cost."""

from collections.abc import Iterator

from rich.table import Table

from client.training.ledger import UNKNOWN, Entry, Ledger, compose
from client.training.privacy import composed_epsilon

_DIGITS = 12


def ledger_table(ledger: Ledger) -> Table:
    """Every row of a ledger."""
    table = Table(title=f"{ledger.path}", title_justify="left")
    for heading in ("begun (UTC)", "images of", "images", "state", "epsilon", "delta", "contribution"):
        table.add_column(heading)
    for entry in ledger.entries():
        table.add_row(
            entry.time,
            entry.fingerprint[:_DIGITS],
            str(entry.images) if entry.fingerprint != UNKNOWN else "?",
            entry.state,
            _epsilon(entry),
            f"{entry.delta:g}" if entry.delta else "",
            (entry.contribution or "")[:_DIGITS],
        )
    return table


def _epsilon(entry: Entry) -> str:
    if entry.run is None or entry.delta is None:
        return "no limit"
    return f"{composed_epsilon([entry.run], entry.delta):.3f}"


def ledger_lines(ledger: Ledger) -> Iterator[str]:
    """What each set of images has cost, by every contribution that shares an image with it."""
    deltas = {entry.fingerprint: entry.delta for entry in ledger.entries() if entry.delta}
    for fingerprint, delta in deltas.items():
        total = compose(ledger.sharing(fingerprint), delta)
        line = f"images {fingerprint[:_DIGITS]}: epsilon {total.epsilon:.3f} at delta {delta:g} by "
        line += f"{total.contributions} contribution(s) under differential privacy"
        if total.without_differential_privacy:
            line += f", and {total.without_differential_privacy} without, which no epsilon covers"
        yield line
    if any(entry.fingerprint == UNKNOWN for entry in ledger.entries()):
        yield (
            "images unknown: a packed model counts for all images until it is packed again with --data, "
            "the images it was trained on"
        )
