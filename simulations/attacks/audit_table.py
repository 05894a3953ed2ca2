"""What each release of an audit gave away, as a table: one row a target, LiRA online."""

from collections.abc import Sequence

from client.rehearsing.attacks import ONLINE
from client.rehearsing.rehearse import CANARIES, NATURAL, Finding
from simulations.attacks.sweep_table import interval_cell
from simulations.reporting.record import Column, Row, Table

_INTERVAL = "{value:.2f} ({low:.2f}–{high:.2f})"
_PERCENT = "{value:.1f} ({low:.1f}–{high:.1f}) %"
COLUMNS = (
    Column(key="target", title="what is attacked"),
    Column(key="canaries_auc", title="canaries, AUC", format=_INTERVAL),
    Column(key="canaries_tpr", title="canaries, TPR at 1 % FPR", format=_PERCENT),
    Column(key="natural_auc", title="natural images, AUC", format=_INTERVAL),
    Column(key="natural_tpr", title="natural, TPR at 1 % FPR", format=_PERCENT),
    Column(key="bound", title="ε ≥ (ceiling)", format="{value:.2f} ({ceiling:.2f})"),
)


def table(findings: Sequence[Finding]) -> Table:
    """AUC and true-positive rate with 95 % bootstrap intervals, on canaries and on natural images."""
    notes = ("Guessing has an AUC of 0.5 and a TPR of 1 %. An attack that fails is not evidence of safety.",)
    return Table("What a release gives away", COLUMNS, tuple(map(_row, findings)), notes)


def _row(finding: Finding) -> Row:
    canaries, natural = (finding.exposures[kind][ONLINE] for kind in (CANARIES, NATURAL))
    return {
        "target": finding.target,
        "canaries_auc": interval_cell(canaries.auc),
        "canaries_tpr": interval_cell(canaries.tpr_at_1_percent, times=100),
        "natural_auc": interval_cell(natural.auc),
        "natural_tpr": interval_cell(natural.tpr_at_1_percent, times=100),
        "bound": {"value": finding.bound.epsilon, "ceiling": finding.bound.ceiling},
    }
