"""The documentation as a site, and the messages that it quotes."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data import ROOT

QUOTING = (ROOT / "docs" / "troubleshooting.md", ROOT / "docs" / "tensorrt.md")
GAP = "\0"


def templates() -> Iterator[str]:
    """Every text in the sources, with GAP where a value goes in."""
    for folder in ("edgekit", "plugins_trt"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(v.value) if isinstance(v, ast.Constant) else GAP for v in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%(\.\d+)?[sdg]", GAP, node.value)


def quoted(page: Path) -> list[str]:
    """The messages in the first column of the tables that explain messages."""
    tables = re.findall(r"^\| (?:message|it says) \|.*\n\|[-|]+\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    assert tables
    return [m for table in tables for row in table.splitlines() for m in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def test_quoted_messages_are_those_of_the_sources() -> None:
    """Each is a piece of one text of the sources; "…" and example numbers stand for what is filled in."""
    texts = set(templates())
    missing = []
    for page in QUOTING:
        for message in quoted(page):
            parts = [re.escape(part) for part in message.split("…")]
            pattern = re.compile(".*".join(parts), re.DOTALL)
            if not any(pattern.search(text) for text in texts):
                missing.append(f"{page.name}: {message}")
    assert not missing, "\n".join(missing)


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """`mkdocs build --strict`: broken links, anchors and pages outside the navigation are errors."""
    pytest.importorskip("material", reason="needs mkdocs-material (pip install 'edgekit[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert {"index.html", "troubleshooting.html", "zoo.html"} <= {p.name for p in pages}
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?([^\"\s>]+)", text)
        loaded += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]*href=\"?([^\"\s>]+)", text)
        assert loaded
        assert not [url for url in loaded if "//" in url], page.name


def test_the_table_of_jetpacks_is_the_one_that_compile_goes_by() -> None:
    from edgekit.targets import jetpacks

    page = (ROOT / "docs" / "tensorrt.md").read_text()
    rows = [row.split("|") for row in re.findall(r"^\| [67]\..*$|^\| 5\..*$", page, re.MULTILINE)]
    shown = {v: (row[4].strip(), row[5].strip()) for row in rows for v in row[1].replace(" ", "").split(",")}
    assert shown == {version: (j.cuda, j.tensorrt) for version, j in jetpacks().items()}
