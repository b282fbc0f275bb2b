"""An experiment from its plan to the page."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from projkern.tokenization.run import TokenizeConfig
from projkern.training.data import check_data, with_settings_of_data
from projkern.utils.files import locked

from .experiments import ON_SYNTHMNIST, STORED_IN, Plan, Rows, table2, table4, token_rates
from .page.ledger import write_page
from .results import read_results
from .runner import run_jobs
from .sizes import SIZES, Size
from .store import Store
from .tokens import fingerprint, parts, tokenised

ONE_SEED = ("rates", "token_rates")
"""Experiments that take one seed where nobody says otherwise."""


@dataclass(frozen=True)
class Options:
    """What a user chooses.

    Args:
        size: "mini", "small" or "paper".
        out: folder of the trainings.
        results: folder of the stored results; the page lies beside it, with the same name.
        workers: processes.
        seeds: how many of each training; None for the size's.
        seconds: to stop after.
        mnist: as ``TrainConfig.mnist``.
        images: training and validation images, as ``projkern.tokenize`` takes them.
        embeddings: t of each, likewise.
        device: as ``TrainConfig.device``.
    """

    size: str
    out: Path
    results: Path
    workers: int
    seeds: int | None = None
    seconds: float | None = None
    mnist: str | None = None
    images: tuple[str, str] | None = None
    embeddings: str | None = None
    device: str = "auto"

    @property
    def page(self) -> Path:
        return self.results.with_suffix(".md")


@dataclass(frozen=True)
class Outcome:
    """How many results were there before, how many were added, and the file that holds them."""

    before: int
    added: int
    stored: Path


def reproduce(experiment: str, options: Options) -> Outcome:
    """Run what the stored results of an experiment lack, store each result as it comes, and write the page.

    Raises:
        Stopped, Failed: as ``run_jobs``; the page is written all the same.
        SetUpDiffers, ValueError: settings that cannot be met, and folders or files of something else.
        FolderInUse: another process is at it.
    """
    size = SIZES[options.size]
    root = options.out / options.size
    read_results(options.results)  # what the page could not be made of is found before the trainings, not after
    with locked(root):
        rows = list(_rows(experiment, size, root, options))
        store = Store(options.results, options.size, STORED_IN.get(experiment, experiment), rows)
        before = store.count()
        try:
            run_jobs(root, store.missing(), store.add, options.workers, options.seconds)
        finally:
            write_page(options.results, options.page)
    return Outcome(before, store.count() - before, store.path)


def _rows(experiment: str, size: Size, root: Path, options: Options) -> Rows:
    seeds = range(options.seeds or (1 if experiment in ONE_SEED else size.seeds))
    machine = {"device": options.device}
    told = {"device": "auto"}  # a result names the machine itself
    if experiment in ON_SYNTHMNIST:
        plan = Plan(size, {"mnist": options.mnist} | machine, told | {"mnist": "MNIST"} if options.mnist else told)
        check_data(plan.base)
        for seed in seeds:
            yield from ON_SYNTHMNIST[experiment](plan, seed)
        return
    whole = root / "tokens"
    tokenised(whole, _tokenizing(size, options))
    images = fingerprint(whole)
    own_rates = dataclasses.replace(size, rates=size.rates | size.token_rates)
    of_whole = with_settings_of_data({"data": str(whole)})

    def plan_on(folder: Path) -> Plan:
        changes = of_whole | {"data": str(folder)} | size.tokens | machine
        return Plan(own_rates, changes, told | {"data": f"{folder.name} {images}"}, prefix=f"{folder.name}/")

    if experiment != "table4":
        plan = plan_on(whole)
        for seed in seeds:
            yield from (table2 if experiment == "table2" else token_rates)(plan, seed)
    else:
        plans = {rows: plan_on(folder) for rows, folder in parts(whole).items()}
        for seed in seeds:
            yield from table4(plans, seed)


def _tokenizing(size: Size, options: Options) -> TokenizeConfig | None:
    if (options.images is None) != (options.embeddings is None):
        raise ValueError("images and embeddings must be given together: t of each image is in the embeddings")
    if options.images is None:
        return None
    train, validation = options.images
    return TokenizeConfig(train=train, validation=validation, embeddings=options.embeddings, **size.tokenizer)
