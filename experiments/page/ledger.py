"""The page docs/reproduction.md, made from the stored results alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from projkern.utils.files import write_atomically

from ..experiments import ON_TOKENS
from ..results import EXPERIMENTS, SIZES, Document, read_results
from .comparison import section as comparison
from .deviations import deviations, left_open
from .figures import draw_figure4
from .further import figure4, picture, table3, table4
from .trainings import distinct, step_parts
from .variants import generators, lengths, rates, recipes

Results = dict[str, dict[str, Document]]
"""By size and experiment."""

HEAD = """# The paper's experiments, and beyond them

Every table and figure of [Projectable Models](https://arxiv.org/abs/2506.05641), ours beside the paper's. Each is run
by a command, at one of three sizes: **mini** (two CPU cores), **small** (one GPU), **paper** (the paper's shape and
schedule). Results go to `docs/reproduction/SIZE/EXPERIMENT.json`; this page is made from these files alone, never by
hand.

```
python -m projkern.reproduce table1 --size mini --mnist DIR     # or another table or size; goes on where it stopped
python -m projkern.reproduce page                               # this page
```

{status}

How to read it:

- Losses are nats per token on held-out images, the same images for all models and seeds of an experiment. M_s is
  unconditional, M̃_s conditional on t by its first position, P_s projected with a source of its own, P̃ co-trained at
  all sizes on one source. "every position" and "norms" are stronger conditional baselines ([method.md](method.md));
  "all steps" have as many steps as a projected model and its source together.
- Losses are the mean ± the standard deviation over seeds. An interval in brackets is a 95 % interval of a difference
  over seeds and images: images are paired, and so are seeds that both models have; Student's t allows for how few they
  are. "images alone" says that there was one seed.
- The ratio to the paper's value means little at another size of image, palette and training. A loss over that of
  another line *of the same table* travels better, so that is given for both.
- **holds** and **fails** are computed. "within noise" says that the interval leaves the sign open, "undecided" that one
  seed cannot tell."""

DATA = {"synthmnist": "--mnist DIR", "tokens": "--images TRAIN VALIDATION --embeddings FILE"}
"""Options of the command that say where the data are."""

TITLES = {
    "table1": "Table 1: SynthMNIST",
    "table2": "Table 2: real images",
    "table3": "Table 3: size of the source against r",
    "table4": "Table 4: transfer between tasks",
    "figure4": "Figure 4: scales beyond the trained ones",
    "lengths": "Length of the trainings",
    "generators": "Weight generators (appendix B)",
    "recipes": "Recipes beyond the paper",
    "rates": "Learning rates",
    "token_rates": "Learning rates on real images",
}

NOTES = {
    "table1": """k is how many times larger than P_s a conditional model with the same loss would be, read off
between the losses of the M̃_s; both count as what is left once t is given. The paper's words on it are from section
3.3.2. Ours holds for this length of training only: P_s starts from a trained source, M̃_s from nothing, and after a
short training the baselines still have much before them, so k is larger for that ([evaluation.md](evaluation.md));
"all steps" are the fair rivals. Its interval is from resampling images and seeds; few seeds make it too narrow.
"P_s, default recipe" is trained as the package does where nobody says otherwise
([below](#recipes-beyond-the-paper)), all other lines by the paper's plain recipe. The paper finds P_s "roughly
comparable" to an M̃_s four times its size; "at or below" is stricter, and the paper's own P_1/4 is not.

**Why a P_s is not level with an M̃_s four times its size at mini.** Not for short trainings: after shorter ones P_1/4
is below M̃_1/2, after longer ones further above it ([below](#length-of-the-trainings)). What sets mini apart is that
t is worth less to P_s and to M̃_s ("What t is worth"), so that there is less for P_s to gain. Of what was tried
([recipes](#recipes-beyond-the-paper)), the default recipe brings P_1/4 level with M̃_1/2. P_1/8, whose width is 8 at
mini, stays above M̃_1/4; on average smaller sources serve it better than M_1 does ([Table
3](#table-3-size-of-the-source-against-r)), which is the other way round in the paper.""",
    "table2": """Images as the tokens of a VQ-VAE (appendix C.2); t is an embedding of the image. At mini: Tiny
ImageNet, 20,000 training and 5,000 held-out images, made 24x24 and then 144 tokens; t is a SqueezeNet's features,
their 128 principal components, where the paper has SimCLRv2's: an encoder trained on ImageNet's labels in place of
one trained without any. t enters all models normalised. Equivalent sizes are as in Table 1.""",
    "table3": """P_s projected from sources of several sizes (appendix D.1). The paper gives training losses, we
give held-out ones. Each source was pretrained at the best rate of an M_s of its size, and is tuned at a rate in the
same proportion to it as M_1's; the operator's rate is that of M_1. Neither was swept for smaller sources.""",
    "table4": """P_1/2, trained on all or 1/8 of the images of two parts C1 and C2 of the classes: halves, or even
and odd (mod 2). "1/8 and 1" has 1/8 of C1 and all of C2 (appendix D.2). Each has an M_1 of its own, pretrained on
the same images. In the paper the differences are thousandths of a nat, at mini hundredths. The number of steps is
the same for all. So with "1/8 and 1" most of a batch is of C2, where with "all" half of it is, and C2 sees more
steps, not fewer: the paper's last claim is hard to meet so.""",
    "figure4": """The scale component of t goes from 0 to 2, where training drew it from [0, 1]; images are drawn anew
at each value (appendix D.3). The paper has a plot and no numbers, so there is no ratio. Textures get finer with the
scale, hence harder for all models.""",
    "generators": """Every generator with about as many parameters in its operator, as far as its form allows; `general`
is left out where it would have more parameters than [generators.md](generators.md) allows. The paper describes them and
gives no figures.""",
    "recipes": """Each recipe departs from the paper's plain one, "paper's". By rule it wins or loses where the 95 %
interval of its difference to that, paired by seed and image, lies on one side of zero. That is of P_1/4 alone: "its
source", the mean loss of the source after co-training, is the other half of Eq. 2, and a recipe that lets it go
(w_src = 0) pays there. The images are the tables' held-out ones, and the default was chosen by them, which flatters
its gain; "P_s, default recipe" in the tables above has it for longer, at every s, and in Table 2 on images that it
was not chosen by. Of recipes with no difference between them the default is the mildest.""",
    "lengths": """Table 1's models after shorter and longer trainings: the number is that of the source's steps, and
of each small model's own. The paper trains a hundred times longer than mini's Table 1. Learning rates are those of
Table 1 at all lengths. Bold: the projected model is lower, beyond noise; italic: the other is. At mini the lead of
P_1/4 shrinks as trainings grow, as that of a head start would: P_1/4 starts from a trained source. The mean lead of
P_1/8 grows, with seeds that are far apart.""",
    "rates": """Each model at the tables' rates, and at others around them. Trained on a seed that no table uses,
and evaluated on the tables' held-out images, the same for all models. Where the lowest loss is not at the tables'
rate, the tables do the model less than justice. P_1/4 and the generators were swept at the steps of the recipes.
Not swept: M_s and M̃_1, which take the rates of M̃_s and M_1; "all steps", which take those of the same model with
fewer; P_1/2, P_1/8 and P̃, which take those of P_1/4; the recipes, and Table 3's sources.""",
    "token_rates": """The same for Tables 2 and 4, as far as it was done for them.""",
}

SECTIONS: dict[str, Callable[[Document], str]] = {
    "table1": comparison,
    "table2": comparison,
    "table3": table3,
    "table4": table4,
    "figure4": figure4,
    "generators": generators,
    "recipes": recipes,
    "lengths": lengths,
    "rates": rates,
    "token_rates": rates,
}


def write_page(results: Path, page: Path) -> None:
    """Write the page, with its pictures in ``images/`` beside it.

    Args:
        results: the folder of SIZE/EXPERIMENT.json.
        page: the file, replaced if it is there.

    Raises:
        ValueError: results that cannot be read or do not belong together (see ``read_results``); nothing is written.
        OSError: it cannot be written.
    """
    found = read_results(results)
    text = render(found)
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for experiments in found.values():
        if "figure4" in experiments:
            document = experiments["figure4"]
            draw_figure4(images / picture(document), document)
    write_atomically(page, lambda p: p.write_text(text))


def render(results: Results) -> str:
    """The page as Markdown, from what ``read_results`` gives."""
    parts = [HEAD.format(status=_status(results))]
    for experiment in EXPERIMENTS:
        parts += [f"## {TITLES[experiment]}", NOTES[experiment]]
        parts += _at_each_size(results, experiment, SECTIONS[experiment])
    parts += [
        "## Where the time goes",
        "Parts of a training step of Table 1, as measured. Generation makes p and q from t; projection makes the small "
        "models' weights from these and the source, forward and backward. On a CPU each training has one thread, and "
        "others run on the other cores: the shares tell more than the milliseconds.",
        *_at_each_size(results, "table1", step_parts),
        "## Deviations from the paper",
        "Settings of the paper's own lines above that are not those of the preset `paper` "
        "(`projkern/training/config.py`), which follows the paper where that speaks.",
    ]
    for size in SIZES:
        if size in results:
            parts += [f"### {size}", deviations(results[size])]
    parts.append(left_open(results))
    return "\n\n".join(parts) + "\n"


def _at_each_size(results: Results, experiment: str, show: Callable[[Document], str]) -> list[str]:
    parts, missing = [], []
    for size in SIZES:
        document = results.get(size, {}).get(experiment)
        if document is not None and document["results"]:
            parts += [f"### {size}", show(document)]
        else:
            data = DATA["tokens" if experiment in ON_TOKENS else "synthmnist"]
            missing.append(f"{size} (`python -m projkern.reproduce {experiment} --size {size} {data}`)")
    return [*parts, *([f"Not run: {', '.join(missing)}."] if missing else [])]


def _status(results: Results) -> str:
    """How much of each experiment is stored."""
    lines = [f"| | {' | '.join(SIZES)} |", "|---|" + "--:|" * len(SIZES)]
    for experiment in EXPERIMENTS:
        found = [results.get(size, {}).get(experiment) for size in SIZES]
        counts = [0 if document is None else len(distinct(document)) for document in found]
        shown = [f"{count} training{'s' * (count > 1)}" if count else "not run" for count in counts]
        if experiment == "figure4":
            shown = [f"{count} of Table 1's" if count else "not run" for count in counts]
        lines.append(f"| {TITLES[experiment]} | {' | '.join(shown)} |")
    return "\n".join(lines)
