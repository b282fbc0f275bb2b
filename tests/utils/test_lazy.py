"""What is imported when: no torch for --help, no more than is used of the package."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import projkern
from projkern.__main__ import VERBS

SLOW = ("torch", "numpy", "transformers", "matplotlib", "sklearn")

HELP = f"""
import contextlib, io, runpy, sys
verb = sys.argv[1]
sys.argv = ["verb", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    runpy.run_module(f"projkern.{{verb}}", run_name="__main__")
print([name for name in {SLOW} if name in sys.modules])
"""


def imported(program: str, *arguments: str) -> str:
    finished = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


@pytest.mark.parametrize("verb", VERBS)
def test_help_waits_for_no_library(verb):
    """NumPy alone, which is a tenth of a second, for ``reproduce``."""
    assert imported(HELP, verb) == ("['numpy']" if verb == "reproduce" else "[]")


def test_import_is_of_what_is_used():
    """Beside torch: Dynamo takes as long as torch itself, transformers longer."""
    program = """
import sys, torch
import projkern as pk
print([name for name in sys.modules if name.startswith("projkern.") and not name.startswith("projkern.utils")])
for name in pk.__all__:
    getattr(pk, name)
print([name for name in ("torch._dynamo", "transformers", "matplotlib", "sklearn") if name in sys.modules])
"""
    assert imported(program) == "[]\n[]"


@pytest.mark.parametrize("package", ["projkern", "projkern.data", "projkern.models"])
def test_names_are_those_that_type_checkers_see(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    for node in block.body:
        home = importlib.import_module("." * node.level + node.module, package)
        for alias in node.names:
            name = alias.asname or alias.name
            assert getattr(module, name) is getattr(home, alias.name)
            assert name in dir(module)
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    (homes,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "attach"]
    assert set(eval(ast.unparse(homes.args[1]))) == seen


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'projkern' has no attribute 'projct'"):
        projkern.projct  # noqa: B018
    with pytest.raises(ImportError, match="projct"):
        from projkern import projct  # noqa: F401


def test_all_names_come_with_a_star():
    names: dict[str, object] = {}
    exec("from projkern import *", names)
    assert names.keys() >= set(projkern.__all__)
