"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table; its first ``left`` columns are aligned to the left, the others, which hold numbers, to the right."""
    ruler = "|".join("---" if column < left else "--:" for column in range(len(head)))
    return "\n".join([_line(head), f"|{ruler}|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
