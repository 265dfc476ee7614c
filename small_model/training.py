"""A training run that can be stopped at any time and resumes where it was, and the Muon optimizer."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SAVE_SECONDS = 60.0
SHOW_SECONDS = 15.0
MAX_DECAY = 0.995  # of the running mean of the weights
# Of Muon.
MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
NEWTON_SCHULZ_STEPS = 4

# (step, of how many) -> what to show of it
Step = Callable[[int, int], dict[str, float]]


class Run:
    """Steps of one stage; modules and optimizers are saved together every minute.

    Each step seeds torch and Python by its number, so a run that was stopped continues as if it had not been.
    """

    def __init__(
        self, folder: Path, name: str, modules: dict[str, nn.Module], optimizers: Iterable[torch.optim.Optimizer] = ()
    ) -> None:
        self.file, self.log = folder / f"{name}.safetensors", folder / f"{name}.jsonl"
        self.name, self.modules, self.optimizers = name, modules, list(optimizers)
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, step: Step, steps: int) -> None:
        """Runs `step` up to `steps` times, from where the files of an earlier run left off."""
        done = self.load()
        begun = saved = time.time()
        shown = 0.0
        recent: list[dict[str, float]] = []
        for i in range(done, steps):
            random.seed(i)
            torch.manual_seed(i)
            recent = [*recent[-49:], step(i, steps)]
            now = time.time()
            if now - shown > SHOW_SECONDS or i + 1 == steps:
                shown = now
                self._show(i + 1, steps, recent, (now - begun) / (i + 1 - done))
            if now - saved > SAVE_SECONDS or i + 1 == steps:
                saved = now
                self.save(i + 1)

    def _show(self, step: int, steps: int, recent: list[dict[str, float]], seconds: float) -> None:
        names = dict.fromkeys(name for values in recent for name in values)
        mean = {name: _mean([values[name] for values in recent if name in values]) for name in names}
        left = time.strftime("%H:%M:%S", time.gmtime((steps - step) * seconds))
        shown = ", ".join(f"{name} {value:.4f}" for name, value in mean.items())
        print(f"{self.name}: step {step} of {steps}, {left} left, {shown}", flush=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **mean}) + "\n")

    def save(self, step: int) -> None:
        """Writes everything, and then replaces the file of before in one step."""
        tensors = {
            f"{name}.{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        for i, optimizer in enumerate(self.optimizers):
            for parameter, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{parameter}.{key}": value for key, value in state.items()}
        new = self.file.with_suffix(".new")
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, new, {"step": str(step)})
        new.replace(self.file)

    def load(self) -> int:
        """Loads an earlier run and returns its number of steps."""
        if not self.file.is_file():
            return 0
        tensors = load_file(self.file)
        for name, module in self.modules.items():
            module.load_state_dict(_under(tensors, f"{name}."))
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Any]] = {}
            for key, value in _under(tensors, f"optimizer.{i}.").items():
                parameter, entry = key.split(".", 1)
                state.setdefault(int(parameter), {})[entry] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        return saved_steps(self.file)


def saved_steps(file: Path) -> int:
    """How many steps a saved run made; 0 if there is none."""
    from safetensors import safe_open

    if not file.is_file():
        return 0
    with safe_open(file, "pt") as opened:
        return int(opened.metadata()["step"])


def load_module(folder: Path, name: str, module: nn.Module) -> nn.Module:
    """A module with the weights that a stage saved."""
    module.load_state_dict(_under(load_file(folder / f"{name}.safetensors"), "model."))
    return module.eval()


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Learning rate of every group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def descend(loss: Tensor, weights: Iterable[Tensor], optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """One step of the optimizers down the gradient of `loss`, whose norm over `weights` is clipped to 1."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    for optimizer in optimizers:
        optimizer.step()


def cosine(step: int, steps: int, warm_up: int = 50, hold: float = 0.0) -> float:
    """1 after the warm-up, from the share `hold` of the steps on falling to nearly 0 along a cosine."""
    done = max(0.0, (step / steps - hold) / (1 - hold))
    return min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * done)) + 0.005


@torch.no_grad()
def average(into: nn.Module, model: nn.Module, step: int) -> None:
    """Moves `into` towards the model: a running mean of the weights."""
    keep = min(MAX_DECAY, (step + 1) / (step + 10))
    for mean, weight in zip(into.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - keep)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by four quintic Newton-Schulz iterations (Jordan, 2024), in float32.

    torch's own computes in bfloat16, which is slow on a CPU. Matrices of one shape are computed together.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(tuple(sorted(weight.shape)), []).append(weight)
            for weights in shapes.values():
                updates = []
                for weight in weights:
                    mean = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    mean.lerp_(weight.grad, 1 - MOMENTUM)
                    update = weight.grad.lerp(mean, MOMENTUM)
                    updates.append(update.T if update.shape[0] > update.shape[1] else update)
                for weight, update in zip(weights, _orthogonal(torch.stack(updates)), strict=True):
                    turned = update.T if weight.shape[0] > weight.shape[1] else update
                    weight.mul_(1 - group["lr"] * WEIGHT_DECAY)
                    weight.add_(turned, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def _orthogonal(x: Tensor) -> Tensor:
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
