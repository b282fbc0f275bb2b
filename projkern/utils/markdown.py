"""Tables and lines of prose in Markdown."""

import re
import textwrap
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table; its first ``left`` columns are aligned to the left, the others, which hold numbers, to the right."""
    ruler = "|".join("---" if column < left else "--:" for column in range(len(head)))
    return "\n".join([_line(head), f"|{ruler}|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_part(page: str, name: str, part: str) -> str:
    """A page with what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` replaced.

    Raises:
        ValueError: it has no place of that name, or several.
    """
    new = f"<!-- {name} -->\n\n{wrap(part)}\n\n<!-- end of {name} -->"
    page, places = re.subn(f"<!-- {name} -->.*?<!-- end of {name} -->", lambda _: new, page, flags=re.DOTALL)
    if places != 1:
        raise ValueError(f"a page must have one place for '{name}'; it had {places}")
    return page


def wrap(text: str, width: int = 120) -> str:
    """A text whose lines of prose are broken at ``width``; tables, headings, pictures and code stay as they are."""
    lines, is_code = [], False
    for line in text.split("\n"):
        is_code ^= line.startswith("```")
        if is_code or len(line) <= width or line.startswith(("|", "#", "!", " ", "`")):
            lines.append(line)
            continue
        indent = "  " if line.startswith("- ") else ""
        lines += textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)
