"""Text character by character: with states carried from call to call the models say what they say of the whole text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit import ModelSpec
from edgekit.export.torch_runner import TorchRunner
from edgekit.recipe import load_recipe
from tests.data import ROOT

MODELS = ROOT / "models"


def recipe(name: str, what: str):
    return load_recipe(f"{MODELS / name}.py:{what}")


def runner(spec: ModelSpec) -> TorchRunner:
    return TorchRunner(spec.build(), spec.inputs, model=spec.name, outputs=spec.outputs)


@pytest.mark.parametrize("name", ["char_lstm", "char_decoder"])
def test_in_pieces_a_text_gets_the_logits_of_the_whole(name: str) -> None:
    spec = recipe(name, "SPEC")
    run, text = runner(spec).run, np.random.default_rng(0).integers(0, 96, (2, 70))
    whole = run(spec.complete({"token": text}))["logits"]
    feed, pieces = spec.complete({"token": text[:, :9]}), []
    for piece in np.split(text, [9, 10, 11, 40], axis=1):
        answer = run({**feed, "token": piece})
        pieces.append(answer["logits"])
        feed = {state: answer[source] for state, source in spec.states.items()}
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-4)


def test_the_window_of_the_decoder_moves_on() -> None:
    """Beyond the window, what is further back than it does not count, however the text was cut."""
    torch.manual_seed(0)
    net = recipe("char_decoder", "CharDecoder")(width=16, depth=1, heads=2, window=8).eval()
    text = torch.randint(0, 96, (1, 30))
    with torch.inference_mode():
        whole = net(text)[0]
        _, *state = net(text[:, :13])
        one_by_one = []
        for i in range(13, 30):
            logits, *state = net(text[:, i : i + 1], *state)
            one_by_one.append(logits)
        recent = net(text[:, -8:])[0]
    torch.testing.assert_close(torch.cat(one_by_one, dim=1), whole[:, 13:])
    torch.testing.assert_close(recent[:, -1], whole[:, -1])  # one layer: the last character sees eight


@pytest.mark.parametrize("name", ["char_lstm", "char_decoder"])
def test_the_sampling_loop_writes_what_the_model_expects(name: str) -> None:
    spec = recipe(name, "SPEC")
    generate = recipe("_language", "generate")
    run = runner(spec).run
    text = generate(run, spec, "Return the ", length=40, temperature=0)
    answer = run(spec.complete({"token": recipe("_data", "characters")(text[:-1])[None]}))
    likeliest = answer["logits"][0].argmax(axis=1)[len("Return the ") - 1 :]
    assert recipe("_data", "characters")(text[len("Return the ") :]).tolist() == likeliest.tolist()
    drawn = {generate(run, spec, "Return the ", length=20, temperature=1.0, seed=s) for s in (0, 0, 1)}
    assert len(drawn) == 2, "the same seed writes the same, another one something else"
