"""What a person wrote for the page: one Markdown file a section, its title first. Figures come from the results."""

from __future__ import annotations

from pathlib import Path


def words(name: str, **values: str) -> str:
    """The text of NAME.md, with values in place of the names in braces."""
    text = (Path(__file__).parent / f"{name}.md").read_text("utf-8").strip()
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def title(name: str) -> str:
    """The title of a section."""
    return words(name).partition("\n")[0].removeprefix("## ")
