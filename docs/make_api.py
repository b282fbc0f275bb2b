"""Write the API reference, docs/api.md, from the docstrings: ``python docs/make_api.py [--check]``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import griffe
import griffe2md

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
MODULES = ("projkern", "projkern.models.decode", "projkern.sampling", "projkern.data", "projkern.training.trained")
PARSING: griffe.GoogleOptions = {"returns_multiple_items": False, "returns_named_value": False}
HEAD = """# API reference

Made from the docstrings by `python docs/make_api.py`. What `projkern` exports comes first, then its modules.

"""


def reference() -> str:
    """The whole page: the public names of each module, with their docstrings."""
    loader = griffe.GriffeLoader(search_paths=[ROOT], docstring_parser=griffe.Parser.google, docstring_options=PARSING)
    package = loader.load("projkern")
    loader.resolve_aliases(implicit=True, external=False)
    options: griffe2md.ConfigDict = {
        "docstring_section_style": "list",
        "group_by_category": False,
        "inherited_members": False,
        "members_order": "alphabetical",
        "show_if_no_docstring": False,
        "show_signature_annotations": True,
        "show_submodules": False,
        "summary": False,
        "line_length": 100,
    }
    pages = []
    for name in MODULES:
        module = package if name == "projkern" else package[name.removeprefix("projkern.")]
        pages.append(griffe2md.render_object_docs(module, options, format_md=True))
    # Types link to pages of other projects, which are not here.
    without_links = re.sub(r"\[([^]]*)\]\(#[^)]*\)", r"\1", "\n".join(pages))
    return HEAD + re.sub(r"<code>(.*?)</code>", r"`\1`", without_links)


def main() -> int:
    """Write the page, or with ``--check`` fail where it is not what the docstrings make."""
    made = reference()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != made:
            print("docs/api.md is not what the docstrings make; run python docs/make_api.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
