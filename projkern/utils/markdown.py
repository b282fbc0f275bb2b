"""Tables and lines of prose in Markdown."""

import textwrap
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table; its first ``left`` columns are aligned to the left, the others, which hold numbers, to the right."""
    ruler = "|".join("---" if column < left else "--:" for column in range(len(head)))
    return "\n".join([_line(head), f"|{ruler}|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def wrap(text: str, width: int = 120) -> str:
    """A text whose lines of prose are broken at ``width``; tables, headings, pictures and code stay as they are."""
    lines = []
    for line in text.split("\n"):
        is_prose = len(line) > width and not line.startswith(("|", "#", "!", " ", "`"))
        indent = "  " if line.startswith("- ") else ""
        options = {"subsequent_indent": indent, "break_long_words": False, "break_on_hyphens": False}
        lines += textwrap.wrap(line, width, **options) if is_prose else [line]
    return "\n".join(lines)
