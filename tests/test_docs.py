"""What the documentation shows runs: every Python block, every command, the notebook; links and tables are right."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import task_texts
import text_models
from PIL import Image

import projkern as pk
from projkern.__main__ import VERBS, main

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "source activate": "it follows python3 -m venv",
    "python3 -m venv": ".ci/run runs the README's test command word for word",
    "pip install": "the README's test command installs the same",
    "pre-commit install": "it changes the checkout",
    "python -m pytest": "it would run this test",
    "python -m projkern.explore": "it serves until it is stopped; tests/exploration runs it",
    "python -m projkern.reproduce": "an experiment takes long; tests/experiments runs tiny ones",
    "python -m experiments.compression": "it takes hours; tests/experiments runs a tiny one",
    "python -m experiments.languages": "it takes hours; tests/experiments runs a tiny one",
    "torchrun": "it starts many processes; tests/training/test_torchrun.py starts a few",
    "lm_eval": "it needs EleutherAI's harness",
    "vllm": "it needs vLLM and a card",
    "python convert_hf_to_gguf.py": "it needs llama.cpp",
    "benchmarks/gpu.sh": "it needs a CUDA card",
    "make": "it runs the tools that .ci/run runs",
}
"""Commands that are not run here, and why."""

TINY_TASKS = ["--preset", "tiny", "--length", "16", "--source-steps", "2", "--steps", "2", "--eval-windows", "2"]

pytestmark = pytest.mark.usefixtures("one_thread")


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The commands of a page, those joined by && one by one, with the virtual environment taken for active."""
    lines = "".join(code_blocks(page, "bash")).replace("\\\n", " ").replace(".venv/bin/", "").splitlines()
    shown = [line.split(" #")[0] for line in lines if line.strip() and not line.startswith("#")]
    return [command.strip() for line in shown for command in line.split("&&")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder to work in: a task, images of two classes and their embeddings, a tiny language model and text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROJKERN_CACHE", str(tmp_path / "cache"))
    Path("task.json").write_text(json.dumps([0.5] * 18))
    text_models.write_model(Path("stories260K"))
    text_models.write_text(Path("stories.txt"))
    Path("texts").mkdir()
    for name in ("de", "fr", "ja"):
        Path("texts", f"{name}.txt").write_text(task_texts.text_of(name))
    Path("sample.txt").write_text(task_texts.text_of("fr", 200))
    np.savetxt("new.csv", np.eye(3)[:1], delimiter=",")
    rng = np.random.default_rng(0)
    for path in (Path("imagenet") / split / wnid for split in ("train", "val") for wnid in ("n01440764", "n01443537")):
        path.mkdir(parents=True)
        for name in ("1.png", "2.png"):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path / name)
    np.savez("simclr.npz", train=rng.standard_normal((4, 3)), val=rng.standard_normal((4, 3)))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # other tests import the commands
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_top_to_bottom(page, workplace, tiny_run, tiny_settings):
    """Its commands, then its Python, in one folder; training at tiny sizes. runs/quick exists unless it is trained."""
    if not any(command.startswith("python -m projkern.train --out runs/quick") for command in commands(page)):
        shutil.copytree(tiny_run, "runs/quick")
    for command in commands(page):
        if any(command.startswith(start) for start in ELSEWHERE):
            continue
        words = shlex.split(command)
        if words[:2] == ["python", "-m"] and words[2].startswith("projkern."):
            verb, arguments = words[2].removeprefix("projkern."), words[3:]
            if verb == "train" and "--tasks" in arguments:
                arguments = [*arguments, *TINY_TASKS]
            elif verb == "train" and "--resume" not in arguments:
                arguments = [*tiny_settings, *arguments]
            if verb == "tokenize" and "--resume" not in arguments:
                arguments = ["--codes", "8", "--steps", "2", *arguments]
            if verb == "compress" and "--resume" not in arguments:
                arguments = ["2k" if argument == "2M" else argument for argument in arguments]
                arguments += ["--length", "12", "--batch-size", "4", "--held-out", "8", "--tokens", "96"]
            assert main([verb, *arguments]) == 0, command
        else:
            assert words[0] == "python", f"{page} shows a command that this test does not know: {command}"
            finished = subprocess.run([sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True)
            assert finished.returncode == 0, finished.stderr.decode()
    blocks = code_blocks(page, "python")
    Path("blocks.py").write_text("\n".join(blocks))
    names = runpy.run_path("blocks.py")
    if page == "README.md":
        assert names["logits"].shape == (2, 64, 512) and names["W_s"].shape == (32, 128, 512)
        assert names["small"].config.n_embd == 128


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_exist(page):
    for module in re.findall(r"`python -m ((?:projkern|benchmarks)\.[a-z_]+)", (ROOT / page).read_text()):
        assert ROOT.joinpath(*module.split(".")).with_suffix(".py").exists(), module


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("name", ["tour", "compression-tour"])
def test_notebooks_run(name, tmp_path):
    """All cells, in order, in a folder of their own."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/reproduction.md"])  # rendered from results
def test_lines_of_prose_fit(page):
    """At most 120 characters, except in tables, pictures and blocks of code."""
    prose = re.sub(
        r"^```.*?^```|^<!-- (?!end).*?^<!-- end", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL
    )
    lines = [line for line in prose.splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert len(capsys.readouterr().out) > 60


def test_unknown_verb(capsys):
    assert main(["tarin"]) == 2
    assert "train" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_environment_report(capsys):
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert pk.__version__ in shown and "reference: ready" in shown


def test_documentation_agrees_with_the_stored_results():
    """Every generated table is rendered from its JSON (python -m benchmarks.render)."""
    finished = subprocess.run([sys.executable, "-m", "benchmarks.render", "--check"], cwd=ROOT, capture_output=True)
    assert finished.returncode == 0, finished.stderr.decode()
