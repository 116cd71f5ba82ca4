"""MkDocs' hooks: pages that live outside docs/ join the site, and links that leave it lead to the repository.

Every page is also read where it lies, on disk or on a repository's website, so links are written for that place; here
they are turned into those of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
WIDE = re.compile(r"^\|(?:[^|\n]*\|){12,}$", re.MULTILINE)
WORDS_AFTER_LANGUAGE = re.compile(r"^```(\w+) .*$", re.MULTILINE)


def elsewhere() -> dict[str, str]:
    """Pages from outside docs/: where each lies in the repository, by its name on the site."""
    pages = {
        "zoo.md": "models/README.md",
        "benchmarks.md": "benchmarks/README.md",
        "changelog.md": "CHANGELOG.md",
        "contributing.md": "CONTRIBUTING.md",
        "examples/index.md": "examples/README.md",
    }
    for readme in sorted(ROOT.glob("examples/*/README.md")):
        pages[f"examples/{readme.parent.name}.md"] = readme.relative_to(ROOT).as_posix()
    return pages


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere."""
    for name, source in elsewhere().items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links written for the repository into those of the site; files that are no page are linked there."""
    outside = elsewhere()
    here = page.file.src_uri
    source = outside.get(here, f"docs/{here}")
    name_of = {source: name for name, source in outside.items()}
    if WIDE.search(markdown):  # its tables need the room of the table of contents
        page.meta["hide"] = ["toc"]

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        anchor = match[2] or ""
        name = name_of.get(target) or name_of.get(f"{target}/README.md")
        if name is None and target.startswith("docs/"):
            name = target.removeprefix("docs/")
        if name is not None:
            return f"]({posixpath.relpath(name, posixpath.dirname(here) or '.')}{anchor})"
        if not (ROOT / target).exists():
            return match[0]  # MkDocs says so
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"]({config.extra['sources']}/{kind}/main/{target}{anchor})"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(link, markdown[end : fence.start()]), WORDS_AFTER_LANGUAGE.sub(r"```\1", fence[0])]
        end = fence.end()
    return "".join([*parts, LINK.sub(link, markdown[end:])])
