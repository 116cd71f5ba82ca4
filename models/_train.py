"""How the nets of the zoo are trained: the habits of today, once.

`fit` is the whole loop for a net with one loss: AdamW, a one-cycle schedule with warm-up, clipped gradients, early
stopping that keeps the best weights, images with their channels last, mixed precision where a CUDA GPU is, and a seed.
`Optimizer` is its step alone, for loops with several nets (GANs) or with noise in them (diffusion). `finish` writes the
weights and says how good they are. `_zoo.py` tells what a recipe needs to be a row of the zoo.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn import functional as F

from _zoo import LIMIT_BYTES, weights_files
from edgekit import ModelSpec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    net: nn.Module | Callable[[], nn.Module],
    loss: Callable[..., Tensor],
    data: Sequence[Any],
    *,
    epochs: int,
    batch: int = 64,
    max_lr: float = 0.01,
    weight_decay: float = 0.01,
    augment: Callable[..., Sequence[Tensor]] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    patience: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Train `net` and return it in eval mode on the CPU; one line an epoch says how it goes.

    Args:
        net: the net, or what makes it (its class): then its first weights are seeded too.
        loss: `(net, *batch) -> scalar`.
        data: arrays with one row a sample; row i of each belongs together.
        batch: samples a step; the rest of an epoch is left out, and comes in another.
        max_lr: learning rate at the top of the cycle (Smith and Topin, "Super-Convergence", 2019).
        augment: `(*batch) -> batch`, anew each time a sample is seen.
        validate: `(net in eval mode) -> score`, after each epoch; larger is better. The best weights are kept.
        patience: epochs without a better score after which training ends; None: a third of them.
        seed: same seed, same machine, same weights.
    """
    torch.manual_seed(seed)
    module = (net if isinstance(net, nn.Module) else net()).to(DEVICE).to(memory_format=torch.channels_last)
    tensors = [torch.as_tensor(a) for a in data]
    batch = min(batch, len(tensors[0]))
    steps = len(tensors[0]) // batch
    optimizer = Optimizer(module, steps=epochs * steps, max_lr=max_lr, weight_decay=weight_decay)
    best, best_score, waited = None, -np.inf, 0
    for epoch in range(epochs):
        module.train()
        start, total = time.perf_counter(), 0.0
        for index in torch.randperm(len(tensors[0]))[: steps * batch].split(batch):
            rows: Sequence[Tensor] = [_placed(t[index]) for t in tensors]
            with optimizer.precision():
                value = loss(module, *(augment(*rows) if augment else rows))
            total += optimizer.step(value)
        line = f"epoch {epoch + 1:2d}/{epochs}  {time.perf_counter() - start:4.1f} s  loss {total / steps:.4f}"
        if validate is not None:
            score = validate(module.eval())
            waited += 1
            if score > best_score:
                best, best_score, waited = copy.deepcopy(module.state_dict()), score, 0
            line += f"  score {score:.4f}{' *' if waited == 0 else ''}"
        print(line, flush=True)
        if waited > (epochs // 3 if patience is None else patience):
            print(f"no better score for {waited} epochs", flush=True)
            break
    if best is not None:
        module.load_state_dict(best)
    return module.cpu().eval()


def _placed(rows: Tensor) -> Tensor:
    """On the device; images with their channels last, in which form convolutions are up to twice as fast."""
    rows = rows.to(DEVICE, non_blocking=True)
    return rows.contiguous(memory_format=torch.channels_last) if rows.dim() == 4 else rows


class Optimizer:
    """AdamW on a one-cycle schedule, with clipped gradients: what one call of `step` does.

    Weight decay spares biases and norms (all that has one dimension). With a CUDA GPU `precision()` computes in
    bfloat16, or in float16 with a scaled loss where the GPU lacks it.

    Args:
        nets: the net, or several that one loss trains; or parameters.
        steps: number of calls of `step` in the whole training: the length of the cycle.
        warm_up: share of the steps in which the rate rises.
        clip: largest norm of all gradients together.
        betas: AdamW's; GANs want a smaller first one.
    """

    def __init__(
        self,
        nets: nn.Module | Iterable[nn.Module | nn.Parameter],
        *,
        steps: int,
        max_lr: float,
        weight_decay: float = 0.01,
        warm_up: float = 0.2,
        clip: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        parts = [nets] if isinstance(nets, nn.Module) else list(nets)
        every = [p for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]
        self.parameters = [p for p in every if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.clip = clip
        self.adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=max_lr, betas=betas)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.adamw, max_lr=max_lr, total_steps=max(2, steps), pct_start=warm_up, cycle_momentum=False
        )
        self.dtype = torch.bfloat16 if DEVICE.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler(enabled=self.dtype is torch.float16)

    def precision(self) -> AbstractContextManager[Any]:
        """Around the forward pass: mixed precision on a GPU, nothing on a CPU."""
        return torch.autocast(DEVICE.type, dtype=self.dtype, enabled=DEVICE.type == "cuda")

    def step(self, loss: Tensor) -> float:
        """One step down `loss`, and its value. What other nets' parameters gather meanwhile is theirs to clear."""
        self.adamw.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.adamw)
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.schedule.step()
        return float(loss.detach())


def random_affine(
    images: Tensor, turn: float = 0.25, scale: float = 0.15, shift: float = 0.15, fill: float = -1
) -> Tensor:
    """Images (n, channels, height, width), each turned (up to `turn` radians), scaled and shifted by a part of itself.

    What comes in from outside has the value `fill`.
    """
    n = len(images)
    angle = (torch.rand(n) - 0.5) * (2 * turn)
    factor = 1 + (torch.rand(n) - 0.5) * (2 * scale)
    offset = (torch.rand(n, 2) - 0.5) * (2 * shift)
    cos, sin = angle.cos() * factor, angle.sin() * factor
    theta = torch.stack([torch.stack([cos, -sin, offset[:, 0]], 1), torch.stack([sin, cos, offset[:, 1]], 1)], 1)
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def classification(smoothing: float = 0.05) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The loss of a classifier: cross-entropy of `net(inputs)` and labels, smoothed."""
    return lambda net, inputs, labels: F.cross_entropy(net(inputs), labels, label_smoothing=smoothing)


def accuracy(inputs: Any, labels: Any, batch: int = 256) -> Callable[[nn.Module], float]:
    """A `validate` for `fit`: the share of `inputs` whose largest output is the label."""
    pairs = list(zip(torch.as_tensor(inputs).split(batch), torch.as_tensor(labels).split(batch)))

    def validate(net: nn.Module) -> float:
        with torch.inference_mode():
            hits = [(net(x.to(DEVICE)).argmax(dim=1).cpu() == y).float() for x, y in pairs]
        return float(torch.cat(hits).mean())

    return validate


def top1(run: Any, inputs: np.ndarray, labels: np.ndarray, n: int, *, feed: str = "image", batch: int = 100) -> float:
    """Top-1 through any runner: how many of the first `n` inputs have their label as the largest value."""
    inputs, labels, hits = inputs[:n], labels[:n], 0
    for start in range(0, len(inputs), batch):
        scores = next(iter(run({feed: inputs[start : start + batch]}).values()))
        hits += int((scores.argmax(axis=1) == labels[start : start + batch]).sum())
    return hits / len(inputs)


def save(net: nn.Module, recipe: str | Path, *, part: str = "", limit: int = LIMIT_BYTES) -> Path:
    """Write the weights of `net` for the recipe's file, and return where: `weights_file(recipe, part)` finds them.

    Up to `limit` bytes they lie beside the recipe, in float16 if only so they fit (vectors, such as biases and the
    statistics of norms, stay in float32; `load_weights` brings all of them to the net's own type). Larger ones go to
    the cache, in float32.
    """
    beside, cached = weights_files(recipe, part)
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in net.state_dict().items()}
    half = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in plain.items()}
    small = [tensors for tensors in (plain, half) if len(serialize(tensors)) <= limit]
    file = beside if small else cached
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_bytes(serialize(small[0] if small else plain))
    unfinished.replace(file)
    (cached if small else beside).unlink(missing_ok=True)
    return file


def finish(net: nn.Module, spec: ModelSpec, recipe: str | Path) -> None:
    """Write the trained weights, load them as the recipe does, and print its metrics on held-out samples."""
    path = save(net, recipe)
    print(f"{report(spec)}; wrote {path.name} ({path.stat().st_size / 1000:.0f} KB)")


def report(spec: ModelSpec) -> str:
    """The recipe's metrics on held-out samples, by PyTorch, as one line."""
    from edgekit.export.torch_runner import TorchRunner

    run = TorchRunner(spec.build(), spec.inputs, model=spec.name, outputs=spec.outputs)
    metrics = spec.measure(run.run, 2000)
    return f"{spec.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
