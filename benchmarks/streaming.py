"""Sources larger than the memory: ``python -m benchmarks.streaming OUT.json --folder DIR [--gigabytes 8]``.

Writes a Llama of random bf16 weights in shards, and a run on tasks of text that projects it; then measures, each as a
command in a process of its own, in turns with a plain write and read of as many bytes in the same folder:

    project     4 tasks at s = 1/4, all matrices by 4, heads included
    compress    to half the hidden and half the intermediate size, without training

First each is killed half-way, and goes on with ``--resume``: that result is the one that is compared. The source's
pages are dropped from the system's cache before each measurement, and what was written is put onto the disk after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from projkern.data.text import save_tokens
from projkern.language.config import LanguageConfig
from projkern.language.folder import FORMAT, SOURCE_CONFIG, TASKS, TASKS_FILE, TOKENIZER, VECTORS
from projkern.language.stages import TaskSpace, make_operator
from projkern.language.trained import empty_source
from projkern.language.vectors import of_names
from projkern.models.huggingface.axes import build_empty, count_parameters, shapes_of
from projkern.models.huggingface.grouping import Grouping
from projkern.models.huggingface.operator import TransformersOperator
from projkern.models.names import SOURCE, Kind, ModelName
from projkern.training import checkpoint
from projkern.utils.files import SETTINGS
from projkern.utils.tensor_file import TensorFile

from .compare import write_result
from .machine import machine_of

NAMES = ["a", "b", "c", "d"]
SCALE = Fraction(1, 4)
SHARD_BYTES, PIECE = 2_000_000_000, 64 << 20
SHAPE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
TEXT = ("--length", "16", "--batch-size", "2", "--held-out", "2", "--tokens", "0")
PLAIN = ("--importance", "index", "--start", "pruned")


def source_config(gigabytes: float) -> transformers.LlamaConfig:
    """A Llama of so many gigabytes in bf16, to the nearest layer."""
    sizes = [
        count_parameters(shapes_of(build_empty(transformers.LlamaConfig(**SHAPE, num_hidden_layers=layers))))
        for layers in (1, 2)
    ]
    layers = max(1, round((gigabytes * 5e8 - sizes[0]) / (sizes[1] - sizes[0])) + 1)
    return transformers.LlamaConfig(**SHAPE, num_hidden_layers=layers, dtype=torch.bfloat16, initializer_range=0.02)


def write_source(folder: Path, config: transformers.LlamaConfig) -> None:
    """The source: random numbers, in shards that are written a tensor at a time."""
    folder.mkdir(parents=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes_of(build_empty(config)).items():
        size += 2 * torch.Size(shape).numel()
        if size > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 2 * torch.Size(shape).numel()
        shards[-1][name] = shape
    generator, weight_map = torch.Generator().manual_seed(0), {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        with TensorFile(path, {name: (torch.bfloat16, shape) for name, shape in shard.items()}) as file:
            for name, shape in shard.items():
                weight_map[name] = path.name
                if len(shape) == 1:
                    file.write(name, torch.ones(shape, dtype=torch.bfloat16))
                else:
                    rows = torch.randn(min(shape[0], 1024), shape[1], generator=generator) * 0.02
                    file.write(name, rows.bfloat16().repeat(-(-shape[0] // len(rows)), 1)[: shape[0]])
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8"
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def write_run(run: Path, source: Path, config: transformers.LlamaConfig) -> None:
    """A run as a training of ``NAMES`` with a frozen source leaves it; the files of M_1 are the source's own."""
    settings = LanguageConfig().replace(
        tasks="", source=str(source), freeze_source=True, source_steps=0, steps=0, scales=(SCALE,), shrink_heads=True
    )
    run.mkdir()
    FORMAT.write(run / SETTINGS, settings.to_json())
    vectors = of_names(len(NAMES))
    vectors.save(run / VECTORS)
    TASKS.write(run / TASKS_FILE, {"names": NAMES, "held_out": [], "bytes_per_token": [1.0] * len(NAMES)})
    transformers.ByT5Tokenizer(extra_ids=0).save_pretrained(run / TOKENIZER)
    config.save_pretrained(run / SOURCE_CONFIG)
    first = checkpoint.stage_folder(run, SOURCE) / "step-00000000"
    first.mkdir(parents=True)
    for path in source.glob("model*"):
        os.link(path, first / path.name)
    checkpoint.FORMAT.write(first / "state.json", {"step": 0, "seconds": 0.0})
    operator = _operator(run, settings, TaskSpace.of(vectors))
    folder = checkpoint.stage_folder(run, ModelName(Kind.PROJECTED, SCALE))
    checkpoint.save(folder, 0, 0.0, nn.ModuleDict({"operator": operator}), [])


def _operator(run: Path, config: LanguageConfig, space: TaskSpace) -> TransformersOperator:
    """An operator that depends on t, with tables of random numbers."""
    with torch.device("meta"):
        operator = make_operator(empty_source(run), SCALE, config, space)
    operator.to_empty(device="cpu")
    starts = operator.generator.outer_bias
    for stack, bias in zip(Grouping.of(operator.source.config, SCALE, shrink_heads=True).stacks, starts):
        nn.init.constant_(bias, (stack.groups[0] * stack.groups[1]) ** -0.25)
    for name, parameter in operator.named_parameters():
        if parameter.dim() == 1 and name.startswith("own."):
            nn.init.ones_(parameter)
        elif name.startswith("vectors.outer_bias"):
            nn.init.zeros_(parameter)
        elif "outer_bias" not in name:
            nn.init.normal_(parameter, std=0.02)
    return operator


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def forget(folder: Path) -> None:
    """Put a folder's files onto the disk, and drop them from the system's cache."""
    for path in folder.rglob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def write_plainly(path: Path, size: int) -> float:
    """Seconds to write so many bytes and put them onto the disk."""
    piece = os.urandom(PIECE)
    start = time.perf_counter()
    with path.open("wb") as file:
        for done in range(0, size, PIECE):
            file.write(memoryview(piece)[: size - done])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def read_plainly(folder: Path) -> float:
    """Seconds to read the files of a folder from the disk."""
    forget(folder)
    buffer = bytearray(PIECE)
    start = time.perf_counter()
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def memory_of(process: subprocess.Popen[bytes]) -> dict[str, int] | None:
    """Bytes that a process holds at most and now; None when it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    values = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return {"peak": values["VmHWM"], "anonymous": values["RssAnon"]} if "VmHWM" in values else None


def samples_of(process: subprocess.Popen[bytes]) -> Iterator[dict[str, int]]:
    while process.poll() is None:
        if (sample := memory_of(process)) is not None:
            yield sample
        time.sleep(0.02)


def run_command(verb: str, *arguments: object, until: Path | None = None) -> dict[str, float]:
    """Run a command of projkern; seconds, and bytes of memory at the peak: in all, and of those that no file holds.

    Args:
        until: the command is killed when this file has half of its bytes.
    """
    command = [sys.executable, "-m", f"projkern.{verb}", *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, anonymous, was_killed = 0, 0, False
    for sample in samples_of(process):
        peak, anonymous = max(peak, sample["peak"]), max(anonymous, sample["anonymous"])
        if until is not None and until.exists() and 2 * 512 * until.stat().st_blocks > until.stat().st_size > 0:
            process.send_signal(signal.SIGKILL)
            was_killed = True
            break
    _, error = process.communicate()
    if was_killed != (until is not None) or (process.returncode and not was_killed):
        raise RuntimeError(f"{command} ended with {process.returncode}: {error.decode()[-2000:]}")
    return {"seconds": time.perf_counter() - start, "peak": peak, "anonymous": anonymous}


def measure(verb: str, out: Path, partial: Path, source: Path, arguments: list[Any], rounds: int) -> dict[str, Any]:
    """Kill a command half-way, resume it, then time it and the disk in turns.

    Args:
        partial: the first model's folder, while it is being filled.
    """
    killed = run_command(verb, *arguments, "--out", out, until=partial / "model.safetensors")
    final_names = [path.name for path in out.rglob("model.safetensors") if not path.parent.name.startswith(".")]
    assert not final_names, "a model that was being written has its final name"
    job = arguments if verb == "project" else []  # which a compression has stored
    resumed = run_command(verb, *job, "--out", out, "--resume")
    written, read = bytes_in(out), bytes_in(source)
    samples: list[dict[str, Any]] = []
    for _ in range(rounds):
        shutil.rmtree(out)
        sample: dict[str, Any] = {"write": write_plainly(out.with_name("plain"), written), "read": read_plainly(source)}
        forget(source)
        sample |= run_command(verb, *arguments, "--out", out)
        samples.append(sample)
        print(verb, {name: round(value, 2) for name, value in sample.items()}, flush=True)
    shutil.rmtree(out)
    return {"written": written, "read": read, "killed": killed, "resumed": resumed, "rounds": samples}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("out", type=Path, help="a new file, or one that lacks a command")
    parser.add_argument("--folder", type=Path, required=True, help="new, or that of a call that was stopped")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of the source")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    source, run, text = folder / "source", folder / "run", folder / "tokens.npy"
    config = source_config(options.gigabytes)
    if not run.exists():
        write_source(source, config)
        write_run(run, source, config)
    save_tokens(text, [torch.randint(config.vocab_size, (4096,)).numpy()], config.vocab_size)
    largest = max(torch.Size(shape).numel() for shape in shapes_of(build_empty(config)).values())
    shape = {"bytes": bytes_in(source), "layers": config.num_hidden_layers, "largest_parameter": largest, **SHAPE}
    result: dict[str, Any] = {"machine": machine_of("cpu").describe(), "source": shape}
    if options.out.exists():
        stored = json.loads(options.out.read_text("utf-8"))
        if any(stored[name] != value for name, value in json.loads(json.dumps(result)).items()):
            raise ValueError(f"OUT must be a new file, or one of this machine and source; {options.out} is of another")
        result = stored
    result["transformers"] = transformers.__version__
    models, small = folder / "models", folder / "small"
    project = [run, "--task", *NAMES]
    compress = [source, "--text", text, *TEXT, *PLAIN, "--hidden-size", 2048, "--intermediate-size", 5504]
    for verb, out, partial, arguments in (
        ("project", models, models / f".{NAMES[0]}.partial", project),
        ("compress", small, small / ".model.partial", compress),
    ):
        if verb not in result:
            shutil.rmtree(out, ignore_errors=True)
            result[verb] = measure(verb, out, partial, source, arguments, options.rounds)
            write_result(options.out, result)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
