"""What may be said about serving, and what is said about mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgekit.errors import InputError, UsageError
from edgekit.serve.options import ModelOptions, load_options, model_options
from edgekit.serve.pipeline import read_pipeline
from tests.data import ROOT


def test_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(
        "[defaults]\nthreads = 1\nqueue_limit = 10\nmax_batch = 2\n[models.net]\nqueue_limit = 20\nmax_batch = 4\n"
    )
    (tmp_path / "net.toml").write_text("max_batch = 8\n")
    net, other = tmp_path / "net.edge", tmp_path / "other.edge"
    found = model_options(net, "net", given={"instances": 3, "threads": 2}, extra={"instances": 5})
    assert (found.threads, found.queue_limit, found.max_batch, found.instances) == (2, 20, 8, 5)
    found = model_options(other, "other")
    assert (found.threads, found.queue_limit, found.max_batch, found.instances) == (1, 10, 2, None)
    assert model_options(tmp_path / "deep" / "net.edge", "net") == ModelOptions()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[defaults]\nthread = 2\n", r"\[defaults\]: Object contains unknown field `thread`"),
        ("[models.net]\nmax_batch = 0\n", r"\[models.net\]: Expected `int` >= 1 - at `\$.max_batch`"),
        ("[models.net]\nversions = 'newest'\n", 'expected "latest", "all", a number, or a list'),
        ("[models.net]\nmax_batch = 4\npreferred_batch = [8]\n", "preferred_batch has a size beyond max_batch"),
        ("[models.net]\npriorities = 1\n", "default_priority is 2, beyond priorities"),
        ("[other]\n", r"unknown field `other`; expected \[defaults\]"),
        ("models = 3", r"Expected `object`, got `int`"),
        ("= 3", "is not TOML"),
        ("a = \xff", "is not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "serve.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=words) as caught:
        model_options(tmp_path / "net.edge", "net")
    assert "serve.toml" in str(caught.value)


def test_a_mistake_in_the_model_s_own_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text("threads = 'two'\n")
    with pytest.raises(UsageError, match=r"net.toml': Expected `int \| null`, got `str` - at `\$.threads`"):
        model_options(tmp_path / "net.edge", "net")
    with pytest.raises(UsageError, match="The command line: Expected"):
        model_options(tmp_path / "other.edge", "other", given={"instances": 0})


def test_the_guide_s_examples_and_table_are_the_options(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "serving.md").read_text()
    pipeline, options = re.findall(r"^```toml\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "serve.toml").write_text(options)
    resnet = model_options(tmp_path / "resnet.edge", "resnet")
    assert (resnet.threads, resnet.preferred_batch, resnet.versions) == (1, (8, 16), 2)
    (tmp_path / "a.pipeline.toml").write_text(pipeline)
    assert read_pipeline(tmp_path / "a.pipeline.toml").models == {"faces", "ages"}
    table = guide[guide.index("| option |") :].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(ModelOptions.__struct_fields__)


def test_options_of_a_load_request() -> None:
    config = {
        "name": "net",
        "max_batch_size": 8,
        "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": 500, "priority_levels": 4},
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        "version_policy": {"specific": {"versions": [1, 3]}},
        "response_cache": {"enable": True},
        "threads": 1,
    }
    values = load_options({"config": json.dumps(config)})
    assert values == {
        "max_batch": 8,
        "preferred_batch": (4,),
        "queue_delay_ms": 0.5,
        "priorities": 4,
        "default_priority": 1,
        "instances": 2,
        "versions": ("1", "3"),
        "cache_mib": 64.0,
        "threads": 1,
    }
    assert load_options({}) == {}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"file:1/model.onnx": "x"}, "Files are not taken over the network"),
        ({"colour": 1}, "Parameter 'colour' of a load request is not taken"),
        ({"config": 3}, "not a JSON object in text"),
        ({"config": "[1]"}, "not a JSON object in text"),
        ({"config": '{"colour": 1}'}, "unknown field `colour`"),
        ({"config": '{"max_batch_size": "x"}'}, "Parameter config"),
        ({"config": '{"instance_group": 3}'}, "Parameter config"),
        ({"config": '{"version_policy": {"oldest": 1}}'}, "Parameter config"),
    ],
)
def test_mistakes_in_a_load_request(parameters: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_options(parameters)
