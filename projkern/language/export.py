"""Generated language models as folders of Hugging Face's format: written, read back, compared, renamed into place."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..export.checked import TOLERANCE, WrongModel, compare_logits, read_back, save_pretrained
from ..export.tasks import digest, model_origin
from ..models import TransformersOperator
from ..models.huggingface.operator import positions_of, predict, start_token
from ..training.stages import count
from ..utils.errors import InputError
from ..utils.files import is_nonempty, new_folder, write_text
from .trained import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    operator: TransformersOperator,
    tasks: Sequence[Task],
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    origin: dict[str, Any],
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the model of each task with its tokenizer and a card.

    Args:
        operator: in evaluation mode.
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
        WrongModel: a model failed its check. It is removed.
        OSError: something could not be written; the models that are there are whole.
    """
    of_operator = digest(operator)
    folders = [out] if len(tasks) == 1 else [out / task.name for task in tasks]
    missing = []
    for folder, task in zip(folders, tasks):
        provenance = origin | {"task": task.name, "t": task.t.tolist(), "digest": of_operator}
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
    for folder, task, provenance in tqdm(missing, desc="project", unit=" models", disable=len(tasks) == 1):
        _write(operator, folder, task, tokenizer, provenance)
    return len(missing)


def _write(
    operator: TransformersOperator,
    folder: Path,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    provenance: dict[str, Any],
) -> None:
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(0)
    config = operator.small.config
    length = min(_PROBE, positions_of(operator.small))
    tokens = torch.randint(config.vocab_size, (1, length), generator=generator).to(task.t.device)
    expected = operator(tokens, task.t[None])[0].float().cpu()
    if not expected.isfinite().all():
        raise WrongModel(f"t must give a model of finite logits; that of {task.name} does not")
    model = operator.generate(task.t)
    model.config.projkern = provenance
    with new_folder(folder.resolve()) as partial:
        save_pretrained(model, partial)
        tokenizer.save_pretrained(partial)
        card = _CARD.format(
            kind=config.model_type,
            parameters=count(model),
            task=task.name,
            run=provenance["run"],
            scale=provenance["scale"],
            start=start_token(model),
        )
        write_text(partial / "README.md", card)
        logits = predict(read_back(AutoModelForCausalLM, partial), tokens.cpu())[0].float()
        compare_logits("transformers", folder, logits, expected, TOLERANCE)
        if folder.exists():
            shutil.rmtree(folder)
