"""The privacy statement of a contribution as a page, for the lawyer and the engineer who have to sign it.

Everything on it follows from the contribution itself, and nothing is claimed beyond what that says.
"""

import math
import textwrap
from collections.abc import Iterator

from fedfree.accounting import FALSE_POSITIVE_RATE, REPEATS, consequences
from fedfree.codec import Contribution, contribution_id, sha256
from fedfree.statement import Composition, DifferentialPrivacy

Item = tuple[str, str]
"""A heading and its paragraph."""

WIDTH, INDENT = 100, 20


def page(manifest: bytes, contribution: Contribution) -> str:
    """Plain text, ready to print; takes seconds where ε has to be translated."""
    spent = contribution.privacy.differential_privacy
    items = [
        ("contribution", contribution_id(manifest)),
        ("weights", f"sha256 {sha256(contribution.weights)}"),
        *(_guarantee(spent) if spent else _no_guarantee(contribution)),
        ("initial weights", _initial(contribution)),
        *(_circumstances(spent, contribution) if spent else ()),
        *(_meaning(spent) if spent else ()),
    ]
    return "\n".join(["PRIVACY STATEMENT", "", *(_paragraph(*item) for item in items)])


def _paragraph(name: str, text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=f"{name:<{INDENT}}",
        subsequent_indent=" " * INDENT,
        break_on_hyphens=False,
    )


def _no_guarantee(contribution: Contribution) -> Iterator[Item]:
    yield (
        "status",
        f"""{contribution.privacy.status.value}. Nothing limits what this model gives away about single
        training images, above all about unusual ones.""",
    )


def _guarantee(spent: DifferentialPrivacy) -> Iterator[Item]:
    run = spent.run
    yield "status", "DP: trained under differential privacy, as its organisation declares."
    yield (
        "trust",
        """The organisation adds the noise itself, before anything leaves. The adversary is the server and
        everyone after it, who may know every training image but the one in question.""",
    )
    yield (
        "covered",
        "The parameters of this one model, from one training run, and whatever is computed from them alone.",
    )
    yield (
        "not covered",
        """The number of classes, the rounded number of images, the sampling rate, the architecture, image
        size and normalisation; that and when the organisation took part; accuracies and results of attacks
        that it shares; every other release. What images of a class look like in general is what the model is
        for: differential privacy does not hide it.""",
    )
    yield (
        "unit",
        """One image. Nothing bounds the number of images of one person, so there is no promise about
        persons; see the end. A copy of an image counts as another image.""",
    )
    yield "neighbours", "Add or remove one: two sets of training images where one has one image more."
    yield (
        "spent",
        f"""epsilon {_upwards(spent.epsilon)} at delta {spent.delta:g}, an upper bound by the accountant
        {spent.accountant} ({spent.software}). Delta is the chance that the promise fails altogether; one over
        the number of images is {_one_over(spent)}. Noise multiplier {run.noise_multiplier:.6g}, sampling rate
        {run.sampling_rate:.6g}, {run.steps} steps, gradients clipped to norm {spent.max_grad_norm:g}.""",
    )


def _circumstances(spent: DifferentialPrivacy, contribution: Contribution) -> Iterator[Item]:
    rate, unsampled = spent.run.sampling_rate, consequences(spent.run, spent.delta).without_amplification
    yield (
        "sampling",
        f"""Poisson, as performed: at every step each image enters the batch by a draw of its own, with
        chance {rate:.6g}; an empty batch takes its step too. Without that amplification, the same noise on
        batches dealt out from shuffled images gives epsilon {_short(unsampled)}.""",
    )
    yield (
        "tuning",
        """Not covered: settings chosen by looking at results on the same images spend more than epsilon
        says. The number of steps was fixed before training, and the model was not chosen by its accuracy.""",
    )
    yield "composition", _composition(spent.composition, spent.delta)
    yield (
        "randomness",
        """Noise and sampling from generators that the operating system filled: the whole state of a Mersenne
        twister, or, for the noise of a training on a GPU, a Philox generator's key of 64 bits. No seed exists
        that would repeat them. These generators are not cryptographic, and noise in floating-point numbers is
        coarser than the noise of the proof.""",
    )
    kept = " What was not trained, and all running statistics are the start's, bit by bit."
    yield (
        "architecture",
        f"""{contribution.architecture}: no layer couples the images of a batch, and the contribution holds
        parameters only, no running statistics; both were checked.{kept if contribution.start else ""}""",
    )
    yield "attacks", "None reported here. An attack that fails is not evidence of safety."


def _composition(composition: Composition, delta: float) -> str:
    together = f"""By the organisation's ledger, {composition.contributions} contributions under differential
        privacy share images with this one, itself included, and spend together at most epsilon
        {_upwards(composition.epsilon)} at delta {delta:g}."""
    if composition.without_differential_privacy:
        together += f"""{composition.without_differential_privacy} more were made without differential
            privacy: no epsilon covers the images in those."""
    if composition.epsilon_budget is None:
        return f"{together} The organisation has set no cap."
    return f"{together} Its client refuses to go above {composition.epsilon_budget:g}."


def _initial(contribution: Contribution) -> str:
    initial = contribution.privacy.initial_weights
    if initial and contribution.start:
        return f"""Public: those of the federation's public start {contribution.start}; sha256
            {initial.sha256}. But nothing said here covers the images that the start was learned from."""
    if initial is None:
        return "Random numbers."
    if initial.public:
        return f"Public, as the organisation declares; sha256 {initial.sha256}."
    return f"""Not declared public: nothing said here covers the images they were learned from;
        sha256 {initial.sha256}."""


def _meaning(spent: DifferentialPrivacy) -> Iterator[Item]:
    numbers = consequences(spent.run, spent.delta)
    times = " / ".join(map(str, REPEATS))
    yield (
        "what it means",
        f"""Whoever tells by any attack whether an image was used, with {FALSE_POSITIVE_RATE:.0%} false
        alarms, finds at most {_short(100 * numbers.true_positive_rate)} % of the images that were.""",
    )
    yield "", f"The same images contributed {times} times: epsilon {_list(numbers.repeated)}."
    yield "", f"A person with {times} images among them: epsilon {_list(numbers.person)}."


def _one_over(spent: DifferentialPrivacy) -> str:
    if not spent.images:
        return f"above 1/{spent.images_rounded_to}"
    return f"about 1/{spent.images} (rounded down to a multiple of {spent.images_rounded_to})"


def _upwards(epsilon: float) -> str:
    """To three digits behind the point, never rounded down."""
    return f"{math.ceil(epsilon * 1000) / 1000:g}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _list(values: tuple[float, ...]) -> str:
    return " / ".join(map(_short, values))
