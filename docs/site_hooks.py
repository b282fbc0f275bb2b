"""Fit the repository's pages to the site: README.md is its first page, and pictures outside docs/ are part of it.

All pages keep links that a repository browser follows; here they are rewritten to where the site has the target.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/README.md": "experiments.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages outside docs/, and their names on the site."""
PICTURES = "benchmarks/results/**/*.png"
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages show from outside docs/."""
    for name, on_site in PAGES.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, on_site, abs_src_path=str(ROOT / name)))
    for picture in sorted(ROOT.glob(PICTURES)):
        files.append(File.generated(config, str(picture.relative_to(ROOT)), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links from the repository's folders to the site's."""
    here = page.file.src_uri
    origin = next((name for name, on_site in PAGES.items() if on_site == here), f"docs/{here}")

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[2]))
        target = PAGES.get(target, target.removeprefix("docs/"))
        return link[1] + posixpath.relpath(target, posixpath.dirname(here) or ".")

    return LINK.sub(on_site, markdown)
