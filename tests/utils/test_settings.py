"""Dataclasses of settings: their options, sections, former names and types."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from fractions import Fraction

import pytest

from projkern.utils import settings
from projkern.utils.errors import InputError
from projkern.utils.settings import setting


@dataclass(frozen=True)
class Shape:
    """The shape of a model. Its width is even."""

    width: int = setting(8, "width of a layer", former="n_wide")
    depth: int = setting(2, "number of layers", option="layers")

    def __post_init__(self) -> None:
        settings.require_types(self)
        settings.require(self, "width", self.width >= 1, "at least 1")


@dataclass(frozen=True)
class Training:
    """How it is trained."""

    rate: float = setting(0.5, "learning rate")
    scales: tuple[Fraction, ...] = setting((Fraction(1, 2), Fraction(1, 4)), "scales s")
    is_fast: bool = setting(False, "skip the checks")
    batch: int | None = setting(None, "images a step", option=None)
    folder: str | None = setting(None, "where the data are")

    def __post_init__(self) -> None:
        settings.require_types(self)


@dataclass(frozen=True)
class Config:
    """All settings."""

    shape: Shape = field(default_factory=Shape)
    training: Training = field(default_factory=Training)
    seed: int = setting(0, "of everything")


def options_of(config):
    parser = argparse.ArgumentParser(prog="verb")
    settings.add_options(parser, config)
    return parser


def read(*argv):
    return settings.given_options(options_of(Config()).parse_args(list(argv)), Config())


def test_fields_and_their_sections():
    names = [(section, field.name) for section, field in settings.fields_of(Config())]
    assert names == [
        *(("shape", name) for name in ("width", "depth")),
        *(("training", name) for name in ("rate", "scales", "is_fast", "batch", "folder")),
        (None, "seed"),
    ]
    assert [field.name for _, field in settings.fields_of(Config)] == [name for _, name in names]


def test_flat_and_replace_by_name():
    config = settings.replace(Config(), width=16, rate=0.25, seed=3)
    assert config == Config(Shape(16), Training(0.25), 3)
    assert settings.flat(config) == {
        **{"width": 16, "depth": 2, "rate": 0.25, "scales": (Fraction(1, 2), Fraction(1, 4))},
        **{"is_fast": False, "batch": None, "folder": None, "seed": 3},
    }
    assert settings.replace(config) == config
    assert settings.replace(Shape(), depth=5) == Shape(depth=5)


def test_replace_checks_names_and_values():
    for name in ("shape", "breadth", "n_wide"):
        with pytest.raises(InputError, match=f"settings must be among .*; one was {name}"):
            settings.replace(Config(), **{name: 1})
    with pytest.raises(InputError, match="width must be at least 1; it was 0"):
        settings.replace(Config(), width=0)


@pytest.mark.parametrize(
    ("section", "values", "name"),
    [
        (Shape, {"width": "8"}, "width must be of type int; it was 8"),
        (Shape, {"width": 8.5}, "width must be of type int; it was 8.5"),
        (Shape, {"depth": None}, "depth must be of type int; it was None"),
        (Training, {"rate": "fast"}, "rate must be of type float; it was fast"),
        (Training, {"rate": None}, "rate must be of type float; it was None"),
        (Training, {"scales": [Fraction(1, 2)]}, "scales must be of type tuple"),
        (Training, {"is_fast": 1}, "is_fast must be of type bool; it was 1"),
        (Training, {"batch": 1.0}, "batch must be of type .*; it was 1.0"),
        (Training, {"folder": 3}, "folder must be of type .*; it was 3"),
    ],
)
def test_types(section, values, name):
    with pytest.raises(InputError, match=name):
        section(**values)


def test_an_integer_serves_as_a_float():
    assert Training(rate=1).rate == 1 and Training(batch=4).batch == 4


def test_messages_show_tuples_as_they_are_written():
    with pytest.raises(InputError, match=r"scales must be others; it was 1/2 1/4$"):
        settings.require(Training(), "scales", False, "others")


def test_help_shows_each_default_once():
    text = options_of(Config(Shape(16))).format_help()
    for name, default in (("width", "16"), ("layers", "2"), ("rate", "0.5"), ("scales", "1/2 1/4"), ("seed", "0")):
        entry = re.search(rf"^  --{name} .*?(?=^  -|^\n|\Z)", text, re.M | re.S)[0]
        assert " ".join(entry.split()).endswith(f"(default: {default})") and entry.count("default") == 1
    assert "--is-fast, --no-is-fast" in text and "(default: False)" in text
    assert re.search(r"--folder PATH +where the data are$", text, re.M)  # None is no default to show


def test_help_has_a_group_for_each_section():
    text = options_of(Config()).format_help()
    assert re.search(r"^shape:\n  The shape of a model\n\n  --width N", text, re.M)
    assert re.search(r"^training:\n  How it is trained\n", text, re.M) and re.search(
        r"^settings:\n(.*\n)*?  --seed N", text, re.M
    )


def test_help_rounds_defaults():
    text = options_of(settings.replace(Config(), rate=1 / 3)).format_help()
    assert "(default: 0.3333)" in text


def test_help_leaves_out_former_names_and_settings_without_an_option():
    text = options_of(Config()).format_help()
    assert "wide" not in text and "--depth" not in text and "batch" not in text
    with pytest.raises(SystemExit) as stop:
        read("--batch", "3")
    assert stop.value.code == 2


def test_only_what_the_user_names_is_read():
    assert read() == {}
    assert read("--width", "8") == {"width": 8}  # even if it is the default
    assert read("--n-wide", "3") == {"width": 3}
    assert read("--layers", "3", "--rate", "2", "--folder", "x") == {"depth": 3, "rate": 2.0, "folder": "x"}
    assert read("--scales", "1/8", "0.5") == {"scales": (Fraction(1, 8), Fraction(1, 2))}
    assert read("--is-fast") == {"is_fast": True} and read("--no-is-fast") == {"is_fast": False}


@pytest.mark.parametrize("argv", [["--width", "x"], ["--rate", "x"], ["--scales", "1/0"], ["--scales", "half"]])
def test_options_of_another_type(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        read(*argv)
    assert stop.value.code == 2 and argv[0] in capsys.readouterr().err.splitlines()[-1]


def test_changes_at_a_resumption():
    stored = Config(Shape(16, 4))
    settings.require_unchanged(stored, {"width": 16, "depth": 4, "scales": Training().scales}, "config.json")
    with pytest.raises(InputError, match=r"--width must .* 16 as in run/config.json; it was 8"):
        settings.require_unchanged(stored, {"width": 8}, "run/config.json")
    with pytest.raises(InputError, match=r"--layers must .* 4 as in .*; it was 2"):
        settings.require_unchanged(stored, {"depth": 2}, "run/config.json")
