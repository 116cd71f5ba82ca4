"""What recipes train with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from _train import Optimizer, classification, fit, save
from _zoo import weights_file
from edgekit import load_weights

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((200, 8)).astype(np.float32)
LABELS = (INPUTS[:, 0] > 0).astype(np.int64)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def right(module: nn.Module) -> float:
    return float((module(torch.from_numpy(INPUTS)).argmax(1).numpy() == LABELS).mean())


def test_fit_learns_is_seeded_and_says_how_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (fit(net, classification(), (INPUTS, LABELS), epochs=4, batch=16, max_lr=0.05) for _ in range(2))
    for a, b in zip(first.parameters(), again.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert right(first) > 0.9
    assert not first.training
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("epoch  1/4")


def test_fit_stops_early_and_keeps_the_best_weights(capsys: pytest.CaptureFixture[str]) -> None:
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.3, 0.2])
    seen: list[torch.Tensor] = []

    def validate(module: nn.Module) -> float:
        seen.append(next(iter(module.parameters())).detach().clone())
        return next(scores)

    module = fit(net, classification(), (INPUTS, LABELS), epochs=6, patience=2, validate=validate)
    assert len(seen) == 5
    torch.testing.assert_close(next(iter(module.parameters())), seen[1], rtol=0, atol=0)
    assert "no better score for 3 epochs" in capsys.readouterr().out


def test_augment_sees_every_batch_and_frozen_weights_stay() -> None:
    module = net()
    before = module[0].weight.detach().clone()
    module[0].requires_grad_(False)
    rows = 0

    def augment(inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal rows
        rows += len(inputs)
        return inputs, labels

    fit(module, classification(), (INPUTS, LABELS), epochs=2, batch=50, augment=augment)
    assert rows == 400
    torch.testing.assert_close(module[0].weight, before, rtol=0, atol=0)


def test_an_optimizer_trains_several_nets_by_one_loss_and_leaves_others_alone() -> None:
    torch.manual_seed(0)
    encoder, decoder, other = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 8)
    before = other.weight.detach().clone()
    optimizer = Optimizer([encoder, decoder], steps=60, max_lr=0.02)
    x = torch.from_numpy(INPUTS)
    losses = [optimizer.step(nn.functional.mse_loss(other(decoder(encoder(x))), other(x).detach())) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(other.weight, before, rtol=0, atol=0)


def test_weights_that_fit_are_saved_beside_the_recipe_in_half_if_only_so_they_fit(tmp_path: Path) -> None:
    recipe, module = tmp_path / "small.py", nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100))
    for limit, kept in ((50_000, torch.float32), (30_000, torch.float16)):
        file = save(module, recipe, limit=limit)
        assert file == weights_file(recipe) == tmp_path / "small.safetensors"
        assert file.stat().st_size <= limit
        loaded = load_weights(nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100)), file)
        assert loaded[0].weight.dtype == torch.float32
        expected = module[0].weight.to(kept).float()
        torch.testing.assert_close(loaded[0].weight, expected, rtol=0, atol=0)
        torch.testing.assert_close(loaded[1].running_var, module[1].running_var, rtol=0, atol=0)


def test_weights_that_do_not_fit_go_to_the_cache(tmp_path: Path) -> None:
    recipe, module = tmp_path / "large.py", nn.Linear(100, 100)
    save(module, recipe, part="decoder", limit=50_000)
    file = save(module, recipe, part="decoder", limit=1000)
    assert file == weights_file(recipe, "decoder") == tmp_path / "cache" / "large-decoder.safetensors"
    assert not (tmp_path / "large-decoder.safetensors").exists(), "only one of the two places holds them"
    torch.testing.assert_close(load_weights(nn.Linear(100, 100), file).weight, module.weight, rtol=0, atol=0)
