"""Key points of a digit over a photograph, by heat maps ("Simple Baselines", Xiao et al., 2018).

A digit has five: its centre, and the middles of the sides of its frame, which turn with it: so the points tell where it
is, how large it is, and how far it is turned. Where a point is, is decided in the graph: the mean position under its
heat map (soft argmax), which is finer than a pixel.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from _scenes import KEY_POINTS, digit_scenes
from _train import DEVICE, finish, fit
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights

SIZE = 64
PREPROCESS = ImagePreprocess(height=SIZE, width=SIZE, color="L", mean=(0.5,), std=(0.25,))


class Pose(nn.Module):
    """(batch, 1, 64, 64) to points (batch, 5, 2), x and y in pixels, and how sure each is (batch, 5), 0 to 1.

    `depth` strided blocks see the image, and all but two of the halvings are undone by transposed convolutions.
    """

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for i in range(depth):
            wider = width * min(2**i, 4)
            layers += [nn.Conv2d(channels, wider, 3, 2, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
            layers += [nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
            channels = wider
        for _ in range(depth - 2):
            layers += [nn.ConvTranspose2d(channels, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width)]
            layers += [nn.ReLU()]
            channels = 2 * width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, len(KEY_POINTS), 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.layers(image)
        step = image.shape[3] // maps.shape[3]
        chance = maps.flatten(2).softmax(dim=2).unflatten(2, maps.shape[2:])
        places = (torch.arange(maps.shape[3], device=maps.device) + 0.5) * step
        x, y = (chance.sum(dim=2) * places).sum(dim=2), (chance.sum(dim=3) * places).sum(dim=2)
        return torch.stack([x, y], dim=2), chance.amax(dim=(2, 3))


@cache
def scenes(n: int, seed: int, *, test: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (n, 1, 64, 64), and points float32 (n, 5, 3): x, y, and 1 if inside the image."""
    made = digit_scenes(n, seed, SIZE, test=test, objects=(1, 1), sides=(0.4, 0.8), turn=0.8)
    return np.concatenate([PREPROCESS.from_pixels(image[..., None]) for image in made.images]), made.points[:, 0]


def judge(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How many points lie within a tenth of the digit's height of where they are (PCK at 0.1), and the turn's error.

    The turn is that of the line from the bottom to the top, its error the median, in degrees.
    """
    top, bottom = KEY_POINTS.index("top"), KEY_POINTS.index("bottom")
    height = np.linalg.norm(truth[:, top, :2] - truth[:, bottom, :2], axis=1)
    near = np.linalg.norm(found - truth[..., :2], axis=2) < 0.1 * height[:, None]
    lines = [p[:, top, :2] - p[:, bottom, :2] for p in (found, truth)]
    turned = [np.arctan2(line[:, 0], -line[:, 1]) for line in lines]
    off = (turned[0] - turned[1] + np.pi) % (2 * np.pi) - np.pi
    return {"pck": float(near[truth[..., 2] > 0].mean()), "turn_deg": float(np.degrees(np.median(np.abs(off))))}


def build() -> nn.Module:
    return load_weights(Pose(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return {"image": scenes(n, seed)[0]}


def evaluate(run, n: int) -> dict[str, float]:
    images, truth = scenes(1000, 0, test=True)
    found = np.concatenate([run({"image": x})["points"] for x in np.array_split(images[:n], 10)])
    return judge(found, truth[:n])


SPEC = ModelSpec(
    name="pose",
    description="Key points of a handwritten digit: where it is and how far it is turned",
    license="Apache-2.0",
    task="pose",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 1, SIZE, SIZE)),),
    outputs=("points", "confidence"),
    labels=KEY_POINTS,
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 1.0, "fp16": 0.2},
)

ZOO = Zoo(group="vision tasks", title="Key points by heat maps", data="scenes of scikit-learn's digits")


def loss(net: nn.Module, image: Tensor, truth: Tensor) -> Tensor:
    """How far the points are off, in pixels, of those that lie inside the image."""
    points, _ = net(image)
    return ((points - truth[..., :2]).abs().sum(dim=2) * truth[..., 2]).mean()


def train() -> nn.Module:
    images, truth = scenes(400, 1)

    def score(net: nn.Module) -> float:
        with torch.inference_mode():
            return judge(net(torch.from_numpy(images).to(DEVICE))[0].cpu().numpy(), truth)["pck"]

    return fit(Pose, loss, scenes(5000, 2), epochs=10, max_lr=0.005, validate=score)


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
