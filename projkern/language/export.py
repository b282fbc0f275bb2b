"""Generated language models as folders of Hugging Face's format: written, read back, compared, renamed into place.

All models of a chunk of tasks are written side by side, a parameter at a time; transformers reads the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..export.checked import WrongModel
from ..export.streamed import WeightsWriter, check_logits, write_settings
from ..export.tasks import model_origin
from ..models.huggingface.operator import positions_of, start_token, with_start
from ..training.stages import count
from ..utils.errors import InputError
from ..utils.files import is_nonempty, new_folder, require_utf8, write_text
from .stored import StoredOperator
from .trained import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = 64  # tokens
_CARD = """---
library_name: transformers
tags:
- {kind}
- projkern
---

# A {kind} of {parameters:,} parameters for the task {task}

Generated in one shot, without fine-tuning, by a projection operator
([Projectable Models](https://arxiv.org/abs/2506.05641)) of the run `{run}` at s = {scale}, and checked: what
transformers reads from this folder gives the logits of the training-time forward.

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

A text begins with the token {start}, `bos_token_id`:

```python
prompt = [{start}, *tokenizer("...", add_special_tokens=False).input_ids]
print(tokenizer.decode(model.generate(torch.tensor([prompt]), do_sample=True, top_k=0, max_new_tokens=100)[0]))
```
"""


@torch.no_grad()
def write_models(
    operator: StoredOperator,
    tasks: Sequence[Task],
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    origin: dict[str, Any],
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the model of each task with its tokenizer and a card.

    Memory beside the operator's functions of t: twice the largest parameter of the source; at most about 256 MiB for
    what is generated of it, or what one model takes of that, if it is more; and for its check the pages of one small
    model's file, which the system takes back where it needs them.

    Args:
        operator: it.
        tasks: of one, ``out`` is the model; of several, ``out`` holds a folder for each by its name.
        out: the folder.
        tokenizer: of the models.
        origin: "run", "scale" and "step"; goes into every model's configuration.
        resume: leave the models that are there.
        overwrite: replace them.

    Returns:
        How many models this call wrote.

    Raises:
        FileExistsError: a model is there, and neither flag was given.
        InputError: a folder holds something else, or with ``resume`` the model of another task or run.
        WrongModel: a model failed its check. Its chunk is removed.
        OSError: something could not be written; the models that are there are whole.
    """
    require_utf8(out)
    folders = [out] if len(tasks) == 1 else [out / task.name for task in tasks]
    missing = []
    for folder, task in zip(folders, tasks):
        provenance = origin | {"task": task.name, "t": task.t.tolist(), "digest": operator.digest}
        if not is_nonempty(folder):
            missing.append((folder, task, provenance))
            continue
        stored = model_origin(folder)
        if stored is None:
            raise InputError(f"out must be new, or hold projected models; {folder} holds other files")
        if not resume and not overwrite:
            raise FileExistsError(
                f"{folder} already holds a projected model; give --resume to go on with it or --overwrite to replace it"
            )
        if resume and stored != provenance:
            raise InputError(f"out must hold the models of this run and task to go on with them; {folder} does not")
        if overwrite:
            missing.append((folder, task, provenance))
    for first in range(0, len(missing), operator.chunk):
        _write(operator, missing[first : first + operator.chunk], tokenizer)
    return len(missing)


def _write(
    operator: StoredOperator, models: list[tuple[Path, Task, dict[str, Any]]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the models of a chunk, or none of them."""
    with ExitStack() as stack:
        partials = [stack.enter_context(new_folder(folder.resolve(), replace=True)) for folder, _, _ in models]
        _write_weights(operator, [task for _, task, _ in models], partials)
        for partial, (_, _, provenance) in zip(partials, models):
            _write_rest(operator.operator.small, partial, tokenizer, provenance)
        check_logits(partials[0], operator.operator.small, _probe(operator.operator.small))


def _write_weights(operator: StoredOperator, tasks: list[Task], folders: list[Path]) -> None:
    small = operator.operator.small
    parameters = operator.each_parameter(torch.stack([task.t for task in tasks]))
    total = len(list(small.parameters()))
    with ExitStack() as stack:
        writers = [stack.enter_context(WeightsWriter(folder, small, small.dtype)) for folder in folders]
        for name, values in tqdm(parameters, desc="project", total=total, unit=" parameters", leave=False):
            for task, writer, value in zip(tasks, writers, values):
                try:
                    writer.write(name, value)
                except WrongModel as error:
                    raise WrongModel(f"{error}: that of {task.name}") from None


def _write_rest(
    small: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, origin: dict[str, Any]
) -> None:
    """Write all but the weights."""
    write_settings(folder, small, small.dtype, projkern=origin)
    tokenizer.save_pretrained(folder)
    card = _CARD.format(
        kind=small.config.model_type,
        parameters=count(small),
        task=origin["task"],
        run=origin["run"],
        scale=origin["scale"],
        start=start_token(small),
    )
    write_text(folder / "README.md", card)


def _probe(small: PreTrainedModel) -> Tensor:
    """Random tokens, after the token that a text begins with."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(small.config.vocab_size, (1, min(_PROBE, positions_of(small))), generator=generator)
    return with_start(tokens, start_token(small))
