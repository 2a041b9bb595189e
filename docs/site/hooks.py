"""What the site needs beyond mkdocs: the files outside of `docs/` that pages link to.

Links are written as a reader of the repository follows them. On the site what is in `docs/` is at
the top and everything else below `repository/`.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = "repository"
LINKED = (
    "*.md",
    "LICENSE",
    "benchmarks/*.py",
    "benchmarks/README.md",
    "benchmarks/results/**/*.json*",
    "benchmarks/results/**/*.md",
    "benchmarks/results/**/*.png",
    "examples/*.py",
)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is outside of `docs/`."""
    for pattern in LINKED:
        for path in sorted(ROOT.glob(pattern)):
            name = f"{OUTSIDE}/{path.relative_to(ROOT)}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point every link of the page to where its target is on the site."""
    here = posixpath.dirname(page.file.src_uri)
    in_repository = _in_repository(here)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(in_repository, link[0]))
        return posixpath.relpath(_on_site(target), here or ".")

    return LINK.sub(moved, markdown)


def _in_repository(place: str) -> str:
    inside = posixpath.relpath(place or ".", OUTSIDE)
    return posixpath.join("docs", place) if inside.startswith("..") else inside


def _on_site(place: str) -> str:
    inside = posixpath.relpath(place, "docs")
    return posixpath.join(OUTSIDE, place) if inside.startswith("..") else inside
