"""What the documentation shows runs, and the commands under their short names work."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import projkern as pk
from projkern.__main__ import VERBS, main

ROOT = Path(__file__).parent.parent


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/synthmnist.md"])
def test_python_in_the_documentation_runs(page, tmp_path, monkeypatch):
    monkeypatch.setenv("PROJKERN_CACHE", str(tmp_path))
    blocks = code_blocks(page, "python")
    assert blocks
    (tmp_path / "blocks.py").write_text("\n".join(blocks))
    names = runpy.run_path(str(tmp_path / "blocks.py"))
    if page == "README.md":
        assert names["logits"].shape == (2, 64, 512) and names["W_s"].shape == (32, 128, 512)
        assert names["small"].config.n_embd == 128


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # other tests import the commands
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    try:
        status = main([verb, "--help"])
    except SystemExit as stop:
        status = stop.code
    assert status == 0 and len(capsys.readouterr().out) > 60


def test_unknown_verb(capsys):
    assert main(["tarin"]) == 2
    assert "train" in capsys.readouterr().out


def test_environment_report(capsys):
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert pk.__version__ in shown and "reference: ready" in shown


def test_documentation_agrees_with_the_stored_results():
    """Every generated table is the one that its JSON makes (python -m benchmarks.render)."""
    finished = subprocess.run([sys.executable, "-m", "benchmarks.render", "--check"], cwd=ROOT, capture_output=True)
    assert finished.returncode == 0, finished.stderr.decode()
