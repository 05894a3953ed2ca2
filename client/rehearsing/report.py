"""How the findings of an audit are told: a table, and the words that belong beside it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from client.config import PrivacyConfig
from client.rehearsing.attacks import ONLINE, EpsilonBound, Exposure, Interval
from client.rehearsing.rehearse import CANARIES, NATURAL, Finding, Plan, attack_ceiling
from fedfree.host.files import write_file

NOT_RESOLVABLE = "—"


def plain_table(caption: str) -> Table:
    """An empty table of the house's looks, narrow enough for 80 columns."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption=caption, caption_justify="left")


def audit_table(findings: Sequence[Finding]) -> Table:
    """What was released, by kind of image, by attack."""
    table = plain_table(
        "TPR: true positives in % at 1 % and 0.1 % false positives; ranges are 95 % bootstrap intervals; "
        f"{NOT_RESOLVABLE}: not resolvable, too few images that no training saw. loss: threshold; "
        "offline, online: LiRA. Guessing has AUC 0.5, TPR 1 and 0.1."
    )
    for name in ("released", "images", "attack"):
        table.add_column(name)
    for name in ("AUC", "TPR at 1 %", "at 0.1 %", "ε≥/ceiling"):
        table.add_column(name, justify="right", no_wrap=True)
    for finding in findings:
        for kind, attacks in finding.exposures.items():
            for attack, exposure in attacks.items():
                first = attack == next(iter(attacks))
                bound = finding.bound if (kind, attack) == (CANARIES, ONLINE) else None
                labels = (finding.target if first and kind == NATURAL else "", kind if first else "")
                short = attack.removeprefix("LiRA ").removesuffix(" threshold")
                table.add_row(*labels, short, *_cells(exposure, bound))
        table.add_section()
    return table


def _cells(exposure: Exposure, bound: EpsilonBound | None) -> tuple[str, ...]:
    auc = exposure.auc
    return (
        f"{auc.value:.2f} {auc.low:.2f}–{auc.high:.2f}",
        _percent(exposure.tpr_at_1_percent),
        _percent(exposure.tpr_at_0_1_percent),
        f"{bound.epsilon:.2f}/{bound.ceiling:.2f}" if bound else "",
    )


def _percent(rate: Interval | None) -> str:
    if rate is None:
        return NOT_RESOLVABLE
    value, low, high = (
        f"{100 * each:.0f}" if each >= 0.095 else f"{100 * each:.1f}"
        for each in (rate.value, rate.low, rate.high)
    )
    return f"{value} {low}–{high}"


def audit_words(plan: Plan, findings: Sequence[Finding]) -> list[str]:
    """What the attacker knew, what was measured, and what it does not show."""
    members, images = plan.members.shape
    canaries, bound = int(plan.canaries.sum()), findings[0].bound
    shadows = ", ".join(f"{finding.target} {finding.models - 1}" for finding in findings)
    return [
        "Knowledge: the attacker holds what is released, every image with the label used in training, "
        "the training code and its configuration, and shadows trained on known halves of the same images.",
        f"Shadows for each attack: {shadows}; {members} models in all, each on about half of "
        f"{images:,} images. The model that is contributed is none of them, and has about twice the images.",
        f"Canaries: {canaries} of the images carry a wrong label; they show the worst case, which the "
        "average over natural images hides. TPR at 0.1 % needs 1,000 pairs of "
        "a model and an image that it never saw.",
        f"ε ≥: refuted by LiRA online on the canaries at 95 % confidence and δ = {bound.delta:g}, "
        f"{bound.guesses} guesses, median over {bound.models} models. The ceiling is what all guesses right "
        "would give: a claim of an ε above it cannot be refuted here.",
        "An attack that fails is not evidence of safety. These results come from private images and no ε "
        "covers them: keep them, or publish them knowing that.",
    ]


def privacy_words(plan: Plan, privacy: PrivacyConfig, *, epochs: int) -> str:
    """What the training of the attacked models leaves open to any attack."""
    if not privacy.is_dp:
        return "Trained without differential privacy: nothing limits what a better attack finds."
    return (
        f"Trained by DP-SGD, each model at most ε = {privacy.epsilon:g} at δ = {privacy.delta:g}: no attack "
        f"finds more than {100 * attack_ceiling(plan, privacy, epochs=epochs):.1f} % at 1 % false positives."
    )


def print_audit(console: Console, plan: Plan, findings: Sequence[Finding]) -> None:
    """The table and the words."""
    console.print(audit_table(findings))
    for line in audit_words(plan, findings):
        console.print(line, highlight=False, markup=False)


def audit_values(plan: Plan, findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything that was found and what to read with it, as plain values for JSON."""
    return {
        "models": len(plan.members),
        "images": len(plan.images),
        "canaries": int(plan.canaries.sum()),
        "findings": [asdict(finding) for finding in findings],
        "words": audit_words(plan, findings),
    }


def write_audit(path: Path, plan: Plan, findings: Sequence[Finding], **more: object) -> None:
    """Write :func:`audit_values` and whatever ``more`` there is as JSON."""
    write_file(path, (json.dumps(audit_values(plan, findings) | more, indent=2) + "\n").encode())
