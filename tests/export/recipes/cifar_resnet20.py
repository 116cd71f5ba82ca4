"""ResNet-20 for CIFAR-10 with published weights (He et al., shortcut option A)."""

import numpy as np
from torch import nn
from torch.nn import functional

from edgekit import ModelSpec, TensorSpec
from edgekit.export.weights import load_weights
from tests.data import data_folder


class Block(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.extra = channels - channels_in

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return functional.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, image):
        y = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(image))))))
        return self.linear(y.mean(dim=(2, 3)))


def build():
    return load_weights(ResNet20(), data_folder() / "clf_cifar10_resnet_pytorch" / "resnet20-12fca82f.th")


def images(name, count):
    """Images (n, 3, 32, 32) and classes of one of the data folder's archives, evenly over the classes."""
    import io
    import tarfile

    from PIL import Image

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    with tarfile.open(data_folder() / "data_cifar10_jpeg" / name) as tar:
        files = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        classes = sorted({m.name.split("/")[-2] for m in files})
        chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)]
        pixels = [np.asarray(Image.open(io.BytesIO(tar.extractfile(m).read())).convert("RGB")) for m in chosen]
    x = ((np.stack(pixels) / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    return x, np.array([classes.index(m.name.split("/")[-2]) for m in chosen])


def samples(n, seed):
    return {"image": images("train500.tar", n)[0]}


def evaluate(run, n):
    x, y = images("test2000.tar", min(n, 500))
    return {"top1": float((run({"image": x})["logits"].argmax(1) == y).mean())}


SPEC = ModelSpec(
    name="cifar_resnet20",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 3, 32, 32)),),
    outputs=("logits",),
    samples=samples,
    evaluate=evaluate,
)
