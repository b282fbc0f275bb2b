"""The folder of a run on tasks of text: opened for writing, and its settings and tasks read back.

RUN/config.json          the settings
RUN/tasks.json           names of the tasks, which are held out, bytes per token of each
RUN/tokens/00000.npy     their tokens
RUN/tasks.safetensors    their t
RUN/tokenizer/           the tokenizer, in Hugging Face's format
RUN/source/config.json   the configuration of the source
RUN/checkpoint/          of every training
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.corpora import Corpus, find_corpora, part_of, token_file, tokenise_corpus
from ..data.text import open_tokens
from ..utils.errors import InputError
from ..utils.files import SETTINGS, Format, new_folder, require_readable
from .config import LanguageConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

FORMAT = Format("projkern language run", 1, "the settings of a run on tasks of text")
TASKS = Format("projkern tasks", 1, "the tasks of a run")
TASKS_FILE, VECTORS, TOKENS, TOKENIZER, SOURCE_CONFIG = (
    "tasks.json",
    "tasks.safetensors",
    "tokens",
    "tokenizer",
    "source",
)

RATIO_TOKENS = 1 << 20
"""Most tokens of a task's held-out part that its bytes per token are counted on."""


@dataclass(frozen=True)
class Tasks:
    """The tasks of a run.

    Args:
        names: sorted.
        held_out: those of ``names`` that training leaves out.
        bytes_per_token: of the held-out part of each task's text.
    """

    names: list[str]
    held_out: list[str]
    bytes_per_token: list[float]

    @property
    def trained(self) -> list[str]:
        """The names of the tasks that are trained, in the order of their t."""
        return [name for name in self.names if name not in self.held_out]

    def numbers(self, names: list[str]) -> list[int]:
        """Where tasks stand in ``names``."""
        return [self.names.index(name) for name in names]


def is_language_run(folder: Path) -> bool:
    """Whether a folder holds a run on tasks of text."""
    return FORMAT.is_in(folder / SETTINGS)


def read_config(run: Path) -> LanguageConfig:
    """The settings of a run; raises InputError where the folder holds none, or one of another version."""
    return LanguageConfig.read(run / SETTINGS, FORMAT)


def resumed_config(run: Path, changes: dict[str, Any]) -> LanguageConfig:
    """The settings of a run to be continued; raises InputError where ``changes`` asks for others."""
    return LanguageConfig.resumed(run / SETTINGS, FORMAT, changes)


def check_tasks(config: LanguageConfig) -> list[Corpus]:
    """The tasks that the settings name; raises InputError where they are not there, or held-out ones are unknown."""
    corpora = find_corpora(Path(config.tasks.tasks))
    names = [corpus.name for corpus in corpora]
    for name in config.tasks.held_out_tasks:
        if name not in names:
            raise InputError(f"held_out_tasks must be among {', '.join(names)}; one was {name}")
    if len(names) - len(config.tasks.held_out_tasks) < 2:
        raise InputError(f"held_out_tasks must leave at least two of the {len(names)} tasks")
    return corpora


def write_tasks(
    out: Path, config: LanguageConfig, corpora: list[Corpus], tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> Tasks:
    """Tokenise the texts of all tasks into a run's folder, once; raises InputError as ``data.text.tokenise``."""
    description = out / TASKS_FILE
    if not description.exists():
        (out / TOKENS).mkdir(exist_ok=True)
        ratios = []
        for number, corpus in enumerate(corpora):
            path = token_file(out / TOKENS, number)
            tokenise_corpus(corpus, tokenizer, vocab_size, path)
            held_out = part_of(open_tokens(path), "validation")[:RATIO_TOKENS]
            text = tokenizer.decode(held_out.tolist(), skip_special_tokens=True)
            ratios.append(len(str(text).encode()) / max(1, len(held_out)))
        values = {
            "names": [corpus.name for corpus in corpora],
            "held_out": sorted(config.tasks.held_out_tasks),
            "bytes_per_token": ratios,
        }
        if not (out / TOKENIZER).exists():
            with new_folder(out / TOKENIZER) as partial:
                tokenizer.save_pretrained(partial)
        TASKS.write(description, values)  # last: its presence says that all tokens are there
    return read_tasks(out)


def read_tasks(run: Path) -> Tasks:
    """The tasks of a run; raises InputError where it has none yet."""
    values = TASKS.read(run / TASKS_FILE)
    return Tasks(values["names"], values["held_out"], values["bytes_per_token"])


def read_tokenizer(run: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a run."""
    from transformers import AutoTokenizer

    require_readable(run / TOKENIZER)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(run / TOKENIZER, local_files_only=True)
    return tokenizer


def read_source_config(run: Path) -> PreTrainedConfig:
    """The configuration of a run's source."""
    from transformers import AutoConfig

    require_readable(run / SOURCE_CONFIG)
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        run / SOURCE_CONFIG, local_files_only=True, trust_remote_code=False
    )
    return config
