"""Generated language models as folders of Hugging Face's format: written, read back, compared, renamed into place.

All models of a chunk of tasks are written side by side, a parameter at a time. What has been written is read back at
once and must be what was generated, bit for bit; then the first model must give the logits of the training-time forward
as transformers reads it.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..export.checked import TOLERANCE, WrongModel, compare_logits, read_back
from ..export.tasks import model_origin
from ..models.huggingface.causal import quiet_transformers
from ..models.huggingface.operator import positions_of, predict, run, start_token
from ..training.stages import count
from ..utils.errors import InputError
from ..utils.files import is_nonempty, new_folder, write_text
from ..utils.tensor_file import TensorFile
from ..utils.tensors import StoredTensors, read_weights
from .stored import StoredOperator
from .trained import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = 64  # tokens
_WEIGHTS = "model.safetensors"
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
        partials = [stack.enter_context(new_folder(folder.resolve())) for folder, _, _ in models]
        _write_weights(operator, [task for _, task, _ in models], [partial / _WEIGHTS for partial in partials])
        for partial, (_, _, provenance) in zip(partials, models):
            _write_rest(operator, partial, tokenizer, provenance)
        _check_logits(operator, partials[0], models[0][0])
        for folder, _, _ in models:
            if folder.exists():
                shutil.rmtree(folder)


def _write_weights(operator: StoredOperator, tasks: list[Task], paths: list[Path]) -> None:
    layout = operator.layout
    parameters = operator.each_parameter(torch.stack([task.t for task in tasks]))
    with ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path, layout)) for path in paths]
        stored = [StoredTensors.of_file(path) for path in paths]
        for name, values in tqdm(parameters, desc="project", total=len(layout), unit=" parameters", leave=False):
            for task, file, of_file, value in zip(tasks, files, stored, values):
                if not value.isfinite().all():
                    raise WrongModel(f"t must give a model of finite numbers; that of {task.name} does not")
                file.write(name, value)
                if not torch.equal(of_file[name], value.cpu()):
                    raise WrongModel(f"{name} of {task.name}, read back, must be what was generated; it is not")


def _write_rest(
    operator: StoredOperator, folder: Path, tokenizer: PreTrainedTokenizerBase, provenance: dict[str, Any]
) -> None:
    """Write all but the weights."""
    small = operator.operator.small
    config: Any = copy.deepcopy(small.config)
    config.projkern, config.dtype, config.architectures = provenance, small.dtype, [type(small).__name__]
    config.save_pretrained(folder)
    if small.can_generate():
        small.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = _CARD.format(
        kind=config.model_type,
        parameters=count(small),
        task=provenance["task"],
        run=provenance["run"],
        scale=provenance["scale"],
        start=start_token(small),
    )
    write_text(folder / "README.md", card)


def _check_logits(operator: StoredOperator, partial: Path, folder: Path) -> None:
    """Compare the logits of a model with those of the training-time forward. Both have its weights from the file."""
    from transformers import AutoModelForCausalLM

    small = operator.operator.small
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(small.config.vocab_size, (1, min(_PROBE, positions_of(small))), generator=generator)
    logits = predict(read_back(AutoModelForCausalLM, partial), tokens)[0].float()
    compare_logits("transformers", folder, logits, _expected(operator, partial, tokens), TOLERANCE)


def _expected(operator: StoredOperator, partial: Path, tokens: Tensor) -> Tensor:
    """Logits of the operator's small model with the weights of a file, which have been compared with the generated."""
    small = operator.operator.small
    with quiet_transformers():  # from the folder, so that its own parameters, which mean nothing, take no memory
        model = type(small).from_pretrained(partial, config=small.config, local_files_only=True, dtype=small.dtype)
    logits: Tensor = run(model.eval(), tokens, read_weights(partial))[0][0].float()
    if not logits.isfinite().all():
        raise WrongModel(f"t must give a model of finite logits; that in {partial} does not")
    return logits
