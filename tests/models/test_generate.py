"""What the zoo's recipes judge generators, masks and key points by, and the loop of a diffusion model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.recipe import load_recipe
from tests.data import ROOT


def of(recipe: str, name: str) -> Any:
    return load_recipe(f"{ROOT / 'models' / recipe}.py:{name}")


def test_the_frechet_distance_tells_digits_from_what_is_not() -> None:
    frechet, digits, form = (of("gan", name) for name in ("frechet", "digits", "SMALL"))
    real = digits(form)
    noise = np.random.default_rng(0).uniform(-1, 1, real.test.shape).astype(np.float32)
    one = real.train[:1] + 0.01 * noise
    assert frechet(real.test) == pytest.approx(0, abs=1e-6)
    assert frechet(real.train[:300]) < 0.03
    assert frechet(noise[:200]) > 0.5
    assert frechet(one[:200]) > 0.5, "one digit again and again"


def test_sampling_with_a_perfect_denoiser_ends_at_the_image() -> None:
    step_class, mix, sample = (of("diffusion_unet", name) for name in ("Step", "mix", "sample"))
    noise, image = np.random.default_rng(1).uniform(-1, 1, (2, 3, 1, 4, 4)).astype(np.float32)

    class Knows(nn.Module):
        """v of noisy images of which it knows what is under the noise."""

        def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
            share, rest = mix(time, noisy)
            clean = torch.from_numpy(image)
            return share * (noisy - share * clean) / rest - rest * clean

    step, seen = step_class(Knows()), []

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(float(feed["time"][0]))
        tensors = (torch.from_numpy(feed[name]) for name in ("state", "time", "next_time"))
        return dict(zip(("next_state", "image"), (t.numpy() for t in step(*tensors))))

    found = sample(run, noise, steps=5)
    np.testing.assert_allclose(found["image"], image, atol=1e-5)
    np.testing.assert_allclose(found["next_state"], found["image"], atol=1e-5)
    assert seen == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_mean_iou_is_that_of_the_ten_digits() -> None:
    mean_iou = of("unet", "mean_iou")
    truth = np.arange(11).repeat(4).reshape(1, 11, 4)
    exact = np.eye(11)[truth].transpose(0, 3, 1, 2)
    assert mean_iou([exact], truth) == 1
    found = truth.copy()
    found[0, 1, :2] = 0  # half of the digit 0 is missed, 1 / 2
    found[0, 0, :1] = 10  # and one pixel of the background is taken for a 9, 4 / 5
    assert mean_iou([np.eye(11)[found].transpose(0, 3, 1, 2)], truth) == pytest.approx((8 + 1 / 2 + 4 / 5) / 10)


def test_key_points_are_right_within_a_tenth_of_the_height() -> None:
    judge = of("pose", "judge")
    upright = np.array([(50, 50, 1), (50, 30, 1), (60, 50, 1), (50, 70, 1), (40, 50, 0)], np.float32)
    truth = np.stack([upright, upright])
    assert judge(truth[..., :2], truth) == {"pck": 1.0, "turn_deg": 0.0}
    moved = truth[..., :2].copy()
    moved[0, 0, 0] += 3.9
    moved[1, 0, 0] += 4.1
    moved[:, 4] = 0  # outside the image: not counted
    assert judge(moved, truth)["pck"] == pytest.approx(7 / 8)
    angle = np.radians(10)
    turned = (truth[..., :2] - 50) @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + 50
    assert judge(turned, truth)["turn_deg"] == pytest.approx(10, abs=1e-3)
