"""LoRA files of every kind and style, and the weights with the LoRA merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 2, 1.0
Factors = dict[str, Tensor]

# Layers by their names in the networks: a plain one, joined projections, the refiner's, and the text encoder's.
DECODER_LAYERS = (
    "double_blocks.0.img_attn.qkv",
    "single_blocks.1.linear2",
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1",
)
TEXT_LAYERS = ("llm.model.layers.1.self_attn.q_proj", "llm.model.layers.3.mlp.down_proj")


def factors(kind: str, weight: Tensor, seed: int) -> Factors:
    """Random factors of one layer, named as the kind's inventors name them."""
    generator = torch.Generator().manual_seed(seed)
    out, into = weight.shape

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    if kind == "LoHa":
        pairs = {
            "hada_w1_a": (out, RANK),
            "hada_w1_b": (RANK, into),
            "hada_w2_a": (out, RANK),
            "hada_w2_b": (RANK, into),
        }
        return {name: random(*shape) for name, shape in pairs.items()} | {"alpha": torch.tensor(ALPHA)}
    if kind == "LoKr":
        return {"lokr_w1": random(2, 2), "lokr_w2": random(out // 2, into // 2)}
    found = {"up": random(out, RANK), "down": random(RANK, into), "alpha": torch.tensor(ALPHA)}
    if kind == "DoRA":
        found["dora_scale"] = weight.norm(dim=1, keepdim=True) * 1.2
    return found


def merged(kind: str, weight: Tensor, found: Factors) -> Tensor:
    """The weight at strength 1."""
    if kind == "LoHa":
        product = (found["hada_w1_a"] @ found["hada_w1_b"]) * (found["hada_w2_a"] @ found["hada_w2_b"])
        return weight + ALPHA / RANK * product
    if kind == "LoKr":
        return weight + torch.kron(found["lokr_w1"], found["lokr_w2"])
    changed = weight + ALPHA / RANK * found["up"] @ found["down"]
    if kind == "LoRA":
        return changed
    # ComfyUI divides by the norm of the original weight.
    return changed * found["dora_scale"] / weight.norm(dim=1, keepdim=True)


def generic(layer: str, text: bool) -> str:
    return f"text_encoders.{layer}" if text else f"diffusion_model.{layer}"


def kohya(layer: str, text: bool) -> str:
    flat = layer.removeprefix("llm.").replace(".", "_")
    return f"lora_te_{flat}" if text else f"lora_unet_{flat}"


def diffusers(layer: str, text: bool) -> str:
    return f"text_encoder.{layer.removeprefix('llm.')}" if text else f"transformer.{layer}"


def peft(layer: str, text: bool) -> str:
    return f"base_model.model.{layer}" if text else f"base_model.model.visual_generator.backbone.{layer}"


STYLES: dict[str, Callable[[str, bool], str]] = {
    "generic": generic,
    "kohya": kohya,
    "diffusers": diffusers,
    "PEFT": peft,
}
KINDS = ("LoRA", "LoHa", "LoKr", "DoRA")


def write(file: Path, kind: str, style: str, weights: dict[str, Tensor]) -> None:
    """A LoRA on all of the layers; `weights` by the release's names of layers."""
    halves = (
        ("lora_B.weight", "lora_A.weight") if style in ("diffusers", "PEFT") else ("lora_up.weight", "lora_down.weight")
    )
    tensors = {}
    for seed, (layer, text) in enumerate(all_layers()):
        for name, tensor in factors(kind, weights[release_name(layer, text)], seed).items():
            called = {"up": halves[0], "down": halves[1]}.get(name, name)
            tensors[f"{STYLES[style](layer, text)}.{called}"] = tensor.contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)


def merge(kind: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layers' weights with the LoRA merged, by the release's names."""
    found = {}
    for seed, (layer, text) in enumerate(all_layers()):
        name = release_name(layer, text)
        found[name] = merged(kind, weights[name], factors(kind, weights[name], seed))
    return found


def all_layers() -> list[tuple[str, bool]]:
    return [(layer, False) for layer in DECODER_LAYERS] + [(layer, True) for layer in TEXT_LAYERS]


def release_name(layer: str, text: bool) -> str:
    return f"{layer}.weight" if text else f"visual_generator.backbone.{layer}.weight"
