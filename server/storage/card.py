"""The model card beside a published meta-learner: what it is, what it was learned from, and its limits.

After Mitchell et al., Model Cards for Model Reporting (2019). Everything in it is of the manifest and of the
start; nothing says whose a contribution was, or how much it counted.
"""

from jinja2 import Environment, StrictUndefined

from fedfree.codec import MetaLearner
from fedfree.start import Start

NOT_MEASURED = """\
Not measured: the server that learned it has no image to measure it on. On classes of your own, with its
interval: `fedfree-client evaluate --data labelled-images/`."""

# Here and not in a file beside: of what runs at a SuperLink, Flower's bundle holds the modules alone.
CARD = """\
---
library_name: fedfree
tags: [federated-learning, few-shot, meta-learning, data-free]
license: {{ start.licence | lower if start else "other" }}
---

# Meta-learner {{ identity[:12] }}…

A {{ network.architecture }} for {{ "grey" if network.input.channels == 1 else "coloured" }} images of \
{{ network.input.height }} × {{ network.input.width }} pixels, to be adapted to **new** classes from
one to five labelled images of each. One-shot federated meta-learning (FREE, Wei et al., CVPR 2024): the
server that made it saw models, and none of the images that they were trained on.

## Use

`fedfree-client adapt --support new-classes/`: {% if recipe.keeps_network -%}
the network stays as it is, and a head (`{{ recipe.head }}`) is fitted to its features.
{%- else -%}
{{ recipe.steps }} gradient steps on the support images (`{{ recipe.head }}`).
{%- endif %}
Probabilities are calibrated, and an image far from every class is named none of these. Not meant to decide
about a person.

## Accuracy

{{ accuracy }}

## Learned from

Contributions, each one model, by hash (`fedfree-client provenance` tells which are yours):

{% for each in provenance.contributions -%}
- `{{ each }}`
{% endfor %}
{% if start -%}
It began from `{{ start.architecture }}`, sha256 `{{ start.sha256 }}`, licence {{ start.licence }}, from
`{{ start.source | replace("`", "'") }}`: that licence holds for what was learned from there too.
{% else -%}
It began from random weights.
{% endif -%}
{% if provenance.public_images -%}
Beside recovered images the server had {{ provenance.public_images }} that its coordinator named as public,
sha256 `{{ provenance.public_images_sha256 }}`.
{% endif -%}
Configuration `{{ provenance.config_sha256 }}`, seed {{ provenance.seed }}, {{ provenance.software }};
this manifest `{{ identity }}`.

## Limits

- Classes unlike all that the contributions were trained on may be told apart no better than by a public
  network. Where one alone is as good, use that.
- A contribution that was trained to do harm and looks like an honest one is not found out; what one may do
  is bounded.
- What a contribution gives away of its images, this may give away in part: nothing is promised of images
  whose model was not trained under differential privacy.
"""


def model_card(meta_learner: MetaLearner, identity: str, start: Start | None) -> str:
    """Markdown.

    Args:
        identity: of the manifest, hexadecimal.
        start: what the meta-learner began from; None for random weights.
    """
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(CARD)
    return template.render(
        network=meta_learner,
        recipe=meta_learner.recipe,
        provenance=meta_learner.provenance,
        identity=identity,
        start=start,
        accuracy=NOT_MEASURED,
    )
