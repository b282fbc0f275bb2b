from pathlib import Path

PAGE = Path("docs/compression.md")


def write_tables(results: Path) -> None: ...
