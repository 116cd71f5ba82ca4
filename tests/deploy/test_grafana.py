"""deploy/grafana/edgekit.json against what a server and a board really expose."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.telemetry import Watch
from tests.data import ROOT
from tests.serve.running import Client, infer_body, served, tensor
from tests.telemetry import boards
from tests.tiny import tiny_package

DASHBOARD = ROOT / "deploy/grafana/edgekit.json"
SERIES = re.compile(r"^([a-z_]+)(?:\{(.*)\})? \S+$")
LABEL = re.compile(r'([a-z_]+)="')


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def targets() -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend of everything that is drawn."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Metric -> its labels, of a server after a request and an error, and of an Orin Nano."""
    folder = tmp_path_factory.mktemp("grafana")
    package = tiny_package(folder / "tiny.edge").path
    with served(package, options=("--grpc-port", "off", "--heat-guard", "5")) as running, Client(running.url) as client:
        for columns in (4, 3):
            client.ask("POST", "/v2/models/tiny/infer", infer_body(tensor("x", [1, columns], [1.0] * columns)))
        text = client.ask("GET", "/metrics").body.decode()
    with Watch(boards.orin_nano(folder / "orin")) as watch:
        text += "\n".join(watch.metrics())
    out: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := SERIES.match(line):
            out.setdefault(match[1], set()).update(LABEL.findall(match[2] or ""))
    return out


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:edgekit|process)_[a-z_]+", expression))


def test_every_query_names_metrics_and_labels_that_exist(exposed: dict[str, set[str]]) -> None:
    for title, expression, legend in targets():
        names = names_in(expression)
        assert names, title
        assert names <= set(exposed), f"{title}: {names - set(exposed)}"
        labels = set().union(*(exposed[n] for n in names)) | {"instance", "le"}
        grouped = {w for group in re.findall(r"\bby \(([^)]*)\)", expression) for w in re.findall(r"[a-z_]+", group)}
        assert grouped <= labels, f"{title} groups by {grouped - labels}"
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels, f"{title}: {legend}"
    for variable in dashboard()["templating"]["list"][1:]:
        assert names_in(variable["definition"]) <= set(exposed)


def test_every_metric_is_on_the_dashboard(exposed: dict[str, set[str]]) -> None:
    drawn = {re.sub(r"_(bucket|sum|count)$", "", n) for _, expression, _ in targets() for n in names_in(expression)}
    told = {re.sub(r"_(bucket|sum|count)$", "", n) for n in exposed if n.startswith(("edgekit_", "process_resident"))}
    assert told - drawn == set()


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "${datasource}"


def test_the_queries_are_promql(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of the package prometheus")
    rules = []
    for number, (_, expression, _) in enumerate(targets()):
        plain = expression.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
        rules.append({"record": f"query:{number}", "expr": plain})
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
