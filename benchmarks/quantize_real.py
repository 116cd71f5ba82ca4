"""edgekit's INT8 on public trained models with real inputs: does a user notice?

  EDGEKIT_DATA=FOLDER python benchmarks/quantize_real.py

The folder holds the models and data that the tests use. Each row is one task's outputs, FP32 beside INT8 made with
no options but the data, and ONNX Runtime's own quantizer for the classifiers. Figures go to
benchmarks/results/quantize_real.json.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import warnings
import wave
from pathlib import Path
from typing import Any

import numpy as np
import quantize as small
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import ImagePreprocess, ModelSpec, TensorSpec
from edgekit.export.build import export
from edgekit.export.declared import Declared
from edgekit.package import Package
from edgekit.quantize.apply import DEFAULT_MAX_DROP, quantize_package

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
RESULTS = Path(__file__).resolve().parent / "results" / "quantize_real.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """CIFAR ResNet block with the parameter-free shortcut."""

    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.grow = stride != 1 or wide != out
        self.pad = (out - wide) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.grow else x))


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, (wide, out) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            blocks = [BasicBlock(wide if j == 0 else out, out, 2 if j == 0 and i > 1 else 1) for j in range(3)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(y.mean(dim=(2, 3)))


class MobileNetV1(nn.Module):
    """MobileNetV1 of width 0.25 with LeakyReLU."""

    def __init__(self) -> None:
        super().__init__()

        def dense(wide: int, out: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.1))

        def thin(wide: int, out: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.LeakyReLU(0.1),
                nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.1),
            )  # fmt: skip

        def stage(*sizes: tuple[int, int, int]) -> list[nn.Module]:
            return [thin(*s) for s in sizes]

        self.stage1 = nn.Sequential(
            dense(3, 8, 2), *stage((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        )
        self.stage2 = nn.Sequential(*stage((64, 128, 2), *[(128, 128, 1)] * 5))
        self.stage3 = nn.Sequential(*stage((128, 256, 2), (256, 256, 1)))
        self.fc = nn.Linear(256, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage3(self.stage2(self.stage1(x))).mean(dim=(2, 3)))


def weights(net: nn.Module, path: Path) -> nn.Module:
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    return net.eval()


def cifar(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and class names' order as labels."""
    with tarfile.open(DATA / "data_cifar10_jpeg" / name) as tar:
        files = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        files = [m for m in files if m.name.endswith((".jpg", ".jpeg", ".png"))]
        kinds = sorted({Path(m.name).parent.name for m in files})
        images = [np.asarray(Image.open(io.BytesIO(tar.extractfile(m).read())).convert("RGB")) for m in files]  # type: ignore[union-attr]
        return np.stack(images), np.array([kinds.index(Path(m.name).parent.name) for m in files])


def normal(images: np.ndarray) -> np.ndarray:
    out = (images.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


def photos(preprocess: ImagePreprocess) -> np.ndarray:
    """Windows of the four real photographs: each at five places and three sizes."""
    rows = []
    for name in ("grace_hopper.bmp", "cat.bmp", "parrot.jpg", "bird_segmentation.bmp"):
        with Image.open(DATA / "img_samples" / name) as image:
            picture = image.convert("RGB")
            for share in (1.0, 0.8, 0.65):
                w, h = round(picture.width * share), round(picture.height * share)
                places = {
                    (0, 0),
                    (picture.width - w, 0),
                    (0, picture.height - h),
                    (picture.width - w, picture.height - h),
                }
                places.add(((picture.width - w) // 2, (picture.height - h) // 2))
                for x, y in sorted(places):
                    rows.append(preprocess.from_image(picture.crop((x, y, x + w, y + h))))
    return np.concatenate(rows)


def run(package: Package, variant: str, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = small.session(package.model_file(package.variant(variant)), 2)
    return [np.asarray(v) for v in session.run(None, feed)]


def _calibrated(
    package: Package, folder: Path, feed: dict[str, np.ndarray], *, max_drop: float = DEFAULT_MAX_DROP
) -> Any:
    np.savez(folder / "calib.npz", **feed)
    return quantize_package(package, calib=folder / "calib.npz", max_drop=max_drop, force=True)


def classifier(
    spec: ModelSpec, folder: Path, calib: np.ndarray, test: np.ndarray, labels: np.ndarray | None
) -> dict[str, Any]:
    package = export(spec, output=folder / f"{spec.name}.edge", force=True)
    feed = {spec.inputs[0].name: calib}
    result = _calibrated(package, folder, feed)
    source = package.model_file(package.reference)
    rows: dict[str, np.ndarray] = {}
    targets = {"fp32": source, "int8": result.package.model_file(result.package.variant("int8"))}
    for name, make in small.PEERS.items():
        targets[name] = folder / f"{len(targets)}.onnx"
        make(source, targets[name], feed)
    for name, path in targets.items():
        session = small.session(path, 2)
        parts = [session.run(None, {spec.inputs[0].name: test[i : i + 50]})[0] for i in range(0, len(test), 50)]
        rows[name] = np.concatenate(parts).argmax(axis=1)
    out: dict[str, Any] = {"model": spec.name, "images": len(test), "speed_up": result.report.variants[0].speed_up}
    for name, found in rows.items():
        out[name] = {"agreement": 100 * float((found == rows["fp32"]).mean())}
        if labels is not None:
            out[name]["top1"] = 100 * float((found == labels).mean())
    return out


def resnet20(folder: Path) -> dict[str, Any]:
    net = weights(ResNet20(), DATA / "clf_cifar10_resnet_pytorch" / "resnet20-12fca82f.th")
    train, (test, labels) = normal(cifar("train500.tar")[0]), cifar("test2000.tar")
    spec = ModelSpec(
        name="resnet20", build=lambda: net, task="classification", samples=lambda n, seed: {"x": train[:n]},
        inputs=(TensorSpec("x", "float32", ("batch", 3, 32, 32)),),
    )  # fmt: skip
    return classifier(spec, folder, train[::2], normal(test), labels)


def mobilenet(folder: Path) -> dict[str, Any]:
    net = weights(MobileNetV1(), DATA / "clf_mobilenet_v1_025_pytorch" / "mobilenetV1X0.25_pretrain.tar")
    rows = photos(ImagePreprocess(height=224, width=224, mean=MEAN, std=STD))
    spec = ModelSpec(
        name="mobilenetv1_025", build=lambda: net, task="classification", samples=lambda n, seed: {"x": rows[:n]},
        inputs=(TensorSpec("x", "float32", ("batch", 3, 224, 224)),),
    )  # fmt: skip
    return classifier(spec, folder, rows[::2], rows[1::2], None)


def squeezenet(folder: Path) -> dict[str, Any]:
    path = DATA / "clf_squeezenet11" / "squeezenet11_fp32.onnx"
    package = export(path, output=folder / "squeezenet.edge", declared=Declared(task="classification"))
    rows = photos(ImagePreprocess(height=224, width=224, color="BGR", scale=1, mean=(103.94, 116.78, 123.68)))
    result = _calibrated(package, folder, {"data_0": rows[1::2]})
    same = []
    for row in rows[::2]:
        a, b = (run(result.package, v, {"data_0": row[None]})[0].argmax() for v in ("fp32", "int8"))
        same.append(a == b)
    return {"model": "squeezenet", "images": len(same), "same_class": 100 * float(np.mean(same))}


def ultraface(folder: Path) -> dict[str, Any]:
    package = export(DATA / "det_ultraface" / "version-RFB-320.onnx", output=folder / "ultraface.edge")
    rows = photos(ImagePreprocess(height=240, width=320, scale=1, mean=(127,), std=(128,)))
    out: dict[str, Any] = {"model": "ultraface"}
    for budget in (DEFAULT_MAX_DROP, 0.05):
        result = _calibrated(package, folder, {"input": rows[1::2]}, max_drop=budget)
        shifts = []
        for row in rows[::2]:
            (scores, boxes), (_, other) = (run(result.package, v, {"input": row[None]}) for v in ("fp32", "int8"))
            best = int(scores[0, :, 1].argmax())  # of anchors that see the same face, which one wins is chance
            if scores[0, best, 1] > 0.6:
                shifts.append(float(np.abs((boxes[0, best] - other[0, best]) * [320, 240, 320, 240]).max()))
        out[f"box_shift_px_max_drop_{budget:g}"] = sorted(round(s, 2) for s in shifts)
    return out


def silero(folder: Path) -> dict[str, Any]:
    with wave.open(str(DATA / "audio_silero_vad" / "test.wav")) as file:
        signal = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    frames = np.pad(signal, (64, -len(signal) % 512))
    rows = np.stack([frames[i : i + 576] for i in range(0, len(frames) - 575, 512)])
    package = export(DATA / "audio_silero_vad" / "silero_vad_16k_op15.onnx", output=folder / "silero.edge")
    sr = np.array(16000, np.int64)

    def speech(variant: str) -> tuple[np.ndarray, np.ndarray]:
        session = small.session(package.model_file(package.variant(variant)), 1)
        state, found, states = np.zeros((2, 1, 128), np.float32), [], []
        for row in rows:
            states.append(state)
            p, state = session.run(None, {"input": row[None], "state": state, "sr": sr})
            found.append(float(p[0, 0]))
        return np.array(found), np.concatenate(states, axis=1)

    reference, states = speech("fp32")
    index = np.arange(0, len(rows), 8)
    package = _calibrated(package, folder, {"input": rows[index], "state": states[:, index], "sr": sr}).package
    got, _ = speech("int8")
    same = 100 * float(((reference > 0.5) == (got > 0.5)).mean())
    share = [float((p > 0.5).mean()) for p in (reference, got)]
    return {"model": "silero", "frames": len(rows), "same_decision": same, "speech": share}


def espcn(folder: Path) -> dict[str, Any]:
    package = export(DATA / "sr_espcn_x3" / "superres_x3_core.onnx", output=folder / "espcn.edge")
    rows = photos(ImagePreprocess(height=96, width=96, color="L"))
    name = package.manifest.inputs[0].name
    result = _calibrated(package, folder, {name: rows[1::2]})
    a, b = (run(result.package, v, {name: rows[::2]})[0] for v in ("fp32", "int8"))
    return {"model": "espcn", "psnr_db": float(-10 * np.log10(((a - b) ** 2).mean()))}


def main() -> int:
    warnings.filterwarnings("ignore")
    found = []
    with tempfile.TemporaryDirectory() as where:
        for task in (resnet20, mobilenet, squeezenet, ultraface, silero, espcn):
            row = task(Path(where))
            print(json.dumps(row))
            found.append(row)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
