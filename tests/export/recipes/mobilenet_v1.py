"""MobileNetV1 0.25 with published ImageNet weights: depthwise convolutions and BatchNorm as training left them."""

import numpy as np
from PIL import Image
from torch import nn

from edgekit import ImagePreprocess, ModelSpec, TensorSpec
from edgekit.export.weights import load_weights
from tests.data import data_folder

PREPROCESS = ImagePreprocess(
    height=224, width=224, resize="crop", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def conv(channels_in, channels, stride, groups=1, size=3):
    return [
        nn.Conv2d(channels_in, channels, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(0.1),
    ]


def separable(channels_in, channels, stride):
    return nn.Sequential(
        *conv(channels_in, channels_in, stride, groups=channels_in), *conv(channels_in, channels, 1, size=1)
    )


class MobileNetV1(nn.Module):
    def __init__(self):
        super().__init__()
        first = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.stage1 = nn.Sequential(nn.Sequential(*conv(3, 8, 2)), *(separable(*s) for s in first))
        second = [(64, 128, 2), *[(128, 128, 1)] * 5]
        self.stage2 = nn.Sequential(*(separable(*s) for s in second))
        self.stage3 = nn.Sequential(separable(128, 256, 2), separable(256, 256, 1))
        self.fc = nn.Linear(256, 1000)

    def forward(self, image):
        y = self.stage3(self.stage2(self.stage1(image)))
        return self.fc(y.mean(dim=(2, 3)))


def build():
    return load_weights(MobileNetV1(), data_folder() / "clf_mobilenet_v1_025_pytorch" / "mobilenetV1X0.25_pretrain.tar")


def samples(n, seed):
    """Three photographs, shifted and mirrored: real pixels in some variety."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        name = ("grace_hopper.bmp", "cat.bmp", "parrot.jpg")[i % 3]
        with Image.open(data_folder() / "img_samples" / name) as image:
            picture = image.convert("RGB")
        left, top = (int(rng.integers(0, max(1, s // 8))) for s in picture.size)
        rows.append(PREPROCESS.from_image(picture.crop((left, top, picture.width, picture.height))))
    return {"image": np.concatenate(rows)}


SPEC = ModelSpec(
    name="mobilenet_v1",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 3, 224, 224)),),
    outputs=("logits",),
    preprocess={"image": PREPROCESS},
    samples=samples,
)
