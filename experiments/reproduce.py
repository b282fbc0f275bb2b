"""An experiment from its plan to the page."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from projkern.tokenization.config import TokenizeConfig
from projkern.training.data import check_data, with_settings_of_data
from projkern.utils.errors import InputError
from projkern.utils.files import locked

from .documents import RESULTS, read_results
from .image_losses import Masks
from .measures import held_out_parts
from .page.render import write_page
from .plans import ON_SYNTHMNIST, STORED_IN, Plan, Rows, table2, table4, token_rates
from .pool import run_jobs
from .sizes import SIZES, Size
from .store import Store
from .token_parts import fingerprint, parts, tokenised

PAGE = Path("docs/reproduction.md")
"""Of the results in ``RESULTS``."""
ONE_SEED = ("rates", "token_rates")
"""Experiments that take one seed where nobody says otherwise."""


@dataclass(frozen=True)
class Options:
    """What a user chooses.

    Args:
        size: "mini", "small" or "paper".
        out: folder of the trainings.
        results: folder of the stored results.
        workers: processes.
        seeds: how many of each training; None for the size's.
        seconds: to stop after.
        mnist: as ``TrainConfig``'s ``mnist``.
        collections: training and validation images, as ``projkern.tokenize`` takes them.
        embeddings: t of each, likewise.
        device: as ``TrainConfig``'s ``device``.
    """

    size: str
    out: Path
    results: Path
    workers: int
    seeds: int | None = None
    seconds: float | None = None
    mnist: str | None = None
    collections: tuple[str, str] | None = None
    embeddings: str | None = None
    device: str = "auto"

    @property
    def page(self) -> Path:
        """``PAGE`` for the checkout's results; that of other results lies beside their folder, with its name."""
        return PAGE if self.results == RESULTS else self.results.with_suffix(".md")


@dataclass(frozen=True)
class Outcome:
    """How many results were there before, how many were added, and the file that holds them."""

    before: int
    added: int
    stored: Path


def reproduce(experiment: str, options: Options) -> Outcome:
    """Run what the stored results of an experiment lack, store each result as it comes, and write the page.

    Raises:
        Interrupted, Failed: as ``run_jobs``; the page is written all the same.
        SetUpDiffers, InputError: settings that cannot be met, and folders or files of something else.
        FolderInUse: another process is at it.
    """
    size = SIZES[options.size]
    root = options.out / options.size
    read_results(options.results)  # results that the page cannot be made of are refused before the trainings
    with locked(root):
        masks: Masks = {}
        if experiment in ON_SYNTHMNIST:
            rows = list(_synthmnist_rows(experiment, size, options))
        else:
            tokenised(root / "tokens", _tokenizing(size, options), options.device)
            rows = list(_token_rows(experiment, size, root / "tokens", options))
            masks = {name: is_in.numpy() for name, is_in in held_out_parts(root / "tokens").items()}
        store = Store(options.results, options.size, STORED_IN.get(experiment, experiment), rows, masks)
        before = store.count()
        try:
            run_jobs(root, store.missing(), store.add, options.workers, options.seconds)
        finally:
            write_page(options.results, options.page)
    return Outcome(before, store.count() - before, store.path)


def _seeds(experiment: str, size: Size, options: Options) -> range:
    return range(options.seeds or (1 if experiment in ONE_SEED else size.seeds))


def _synthmnist_rows(experiment: str, size: Size, options: Options) -> Rows:
    shown = {"device": "auto"}  # a result names the machine itself
    if options.mnist is not None:
        shown["mnist"] = "MNIST"
    plan = Plan(size, {"mnist": options.mnist, "device": options.device}, shown)
    check_data(plan.base)
    for seed in _seeds(experiment, size, options):
        yield from ON_SYNTHMNIST[experiment](plan, seed)


def _token_rows(experiment: str, size: Size, whole: Path, options: Options) -> Rows:
    """As ``_synthmnist_rows``; ``whole`` holds all the tokenised images."""
    images = fingerprint(whole)
    size = dataclasses.replace(size, rates=size.rates | size.token_rates)
    settings = with_settings_of_data({"folder": str(whole)}) | size.tokens | {"device": options.device}

    def plan_on(folder: Path) -> Plan:
        shown = {"device": "auto", "folder": f"{folder.name} {images}"}
        return Plan(size, settings | {"folder": str(folder)}, shown, prefix=f"{folder.name}/")

    plans = {rows: plan_on(folder) for rows, folder in parts(whole).items()} if experiment == "table4" else {}
    plan = plan_on(whole)
    for seed in _seeds(experiment, size, options):
        if experiment == "table4":
            yield from table4(plans, seed)
        else:
            yield from (table2 if experiment == "table2" else token_rates)(plan, seed)


def _tokenizing(size: Size, options: Options) -> TokenizeConfig | None:
    if (options.collections is None) != (options.embeddings is None):
        raise InputError("collections and embeddings must be given together: t of each image is in the embeddings")
    if options.collections is None:
        return None
    train, validation = options.collections
    return TokenizeConfig(train=train, validation=validation, embeddings=options.embeddings, **size.tokenizer)
