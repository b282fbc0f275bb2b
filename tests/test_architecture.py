"""The three laws of docs/architecture.md, held over the sources of the package; nothing is imported here."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "projkern"
FLOORS = [
    {"utils"},
    {"kernels", "data"},
    {"models"},
    {"export"},
    {"training"},
    {"compression", "language"},
    {"exploration", "evaluation", "tokenization"},
]
"""Rooms from the lowest floor to the highest; the verbs lie above them."""
NOT_VERBS = {"__init__.py", "__main__.py", "py.typed"}
OWN_FORMAT = {("projkern.models.gpt", "projkern.models.huggingface.gpt2")}
"""The one import that may close a circle: a GPT saves and loads itself in its own file format."""
MOST_LINES = 400


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """The modules of the package that this one imports, at its top or inside a function."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    targets: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            targets |= {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            targets.add(node.value)  # of importlib.import_module
    return {target for target in targets if target in MODULES} - {module}


def room(module: str) -> str:
    """The folder of the package that a module lies in; empty for the files at the package's top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def floor(name: str) -> int:
    return next((height for height, rooms in enumerate(FLOORS) if name in rooms), len(FLOORS))


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} - {""} == set.union(*FLOORS)


@pytest.mark.parametrize("module", [name for name in MODULES if room(name)])
def test_imports_go_downwards(module):
    """Into the same room, or into a room of a lower floor."""
    upwards = {
        target
        for target in imports(module)
        if room(target) != room(module) and floor(room(target)) >= floor(room(module))
    }
    assert not upwards, f"{module} is on floor {floor(room(module))} and imports {sorted(upwards)}"


def test_no_import_circle():
    graph = {module: {t for t in imports(module) if (module, t) not in OWN_FORMAT} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_exception_exists():
    assert all(target in imports(module) for module, target in OWN_FORMAT)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "projkern.reproduce"])
def test_nothing_outside_the_package_is_imported(module):
    outside = {"experiments", "benchmarks", "tests"}
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        assert not {name.partition(".")[0] for name in names} & outside


def test_only_verbs_at_the_top():
    built = {path.name for path in PACKAGE.glob("_c*.so")}  # _cpu and _cuda, which a build puts here
    top = {path.name for path in PACKAGE.iterdir() if path.is_file()} - built
    main = ast.parse((PACKAGE / "__main__.py").read_text())
    verbs = next(
        ast.literal_eval(node.value)
        for node in ast.walk(main)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "VERBS"
    )
    assert top - NOT_VERBS == {f"{verb}.py" for verb in verbs}


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES


SOURCES = [
    path for place in ("projkern", "experiments", "benchmarks", "docs") for path in sorted((ROOT / place).rglob("*.py"))
]


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "setup.py"], ids=lambda path: str(path.relative_to(ROOT)))
def test_text_has_an_encoding(path):
    """Whatever the locale: every call that opens text names its encoding."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and "encoding" not in {keyword.arg for keyword in node.keywords}:
            assert not opens_text(node), f"{path.name}:{node.lineno} must name an encoding"


def opens_text(call: ast.Call) -> bool:
    is_method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if is_method else getattr(call.func, "id", None)
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and re.fullmatch(r"[rwax]\+?t?", str(a.value))]
    texts = {keyword.arg for keyword in call.keywords if getattr(keyword.value, "value", None) is True}
    return (
        (name == "read_text" and not call.args)
        or (name == "write_text" and is_method and len(call.args) < 2)
        or (name == "open" and bool(modes or len(call.args) < (1 if is_method else 2)))
        or bool(texts & {"text", "universal_newlines"})
    )


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(x)", True),
        ("path.write_text(x, 'utf-8')", False),
        ("write_text(path, x)", False),
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, 'rb')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open('wb')", False),
        ("Image.open(path)", False),
        ("gzip.open(path, 'rt')", True),
        ("subprocess.run(x, text=True)", True),
        ("subprocess.run(x)", False),
    ],
)
def test_what_opens_text(call, expected):
    assert opens_text(ast.parse(call, mode="eval").body) == expected


def test_the_architecture_page_names_every_file():
    """The page's tree of the package is the package."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.search(r"^projkern/\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert tree, "docs/architecture.md shows no tree of projkern/"
    named, folders = set(), ["projkern"]
    for line in filter(None, tree[1].splitlines()):
        indent, names = len(line) - len(line.lstrip()), line.strip().split("  ")[0].split(" ")
        del folders[indent // 2 :]
        if names[0].endswith("/"):
            folders.append(names[0].rstrip("/"))
        else:
            named |= {"/".join([*folders, name]) for name in names}
    files = {str(path.relative_to(ROOT)) for path in MODULES.values()}
    assert {name for name in named if name.endswith(".py")} == {f for f in files if not is_docstring_only(f)}


def is_docstring_only(file: str) -> bool:
    """Whether a file is an ``__init__.py`` that only says what its folder is for."""
    return file.endswith("__init__.py") and len(ast.parse((ROOT / file).read_text()).body) <= 1
