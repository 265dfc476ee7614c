"""The small model's sizes, and the pack's own networks run over batches, as training needs them.

The language model is built with the few hundred tokens that captions, questions and answers use; `export.py` spreads
them over Qwen3's vocabulary again. The other tokens have an embedding of zeros, so their logits are zero: `rest` stands
for all of them.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import flat_shapes  # noqa: E402
import phrasings  # noqa: E402

from import_core import import_core  # noqa: E402

core = import_core()
for _name in (
    "text.prompts",
    "text.tokenizer",
    "pixels",
    "schedule",
    "multimodal",
    "networks.decoder",
    "networks.rotary",
):
    importlib.import_module(f"ovis_core.{_name}")
prompts, config = core.text.prompts, core.weights.config
causal_attention = core.networks.attention.causal_attention

VOCABULARY = 151936
WIDTH = 128  # of the language model and of the decoder
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
}
VISION = {
    "vocab_size": 260,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 448,
    "patch_size": 14,
    "hidden_stride": 2,
    "rms_norm_eps": 1e-5,
    "qkv_bias": False,
    "use_bias": False,
}
DECODER = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": WIDTH,
    "context_in_dim": 2 * WIDTH,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": (8, 12, 12),
    "theta": 100,
    "qkv_bias": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,) * 4,
    "layers_per_block": 1,
}
LATENT_SCALE = 0.13025

GRID = 16  # visual tokens per side of an image, which is enlarged to 448 x 448 pixels
TOKENS = GRID * GRID
REGION = flat_shapes.SIDE // GRID  # pixels a side that one visual token shows
PATCHES = core.weights.config.HIDDEN_STRIDE**2  # of one visual token
BEFORE = 3  # tokens before the picture: <|im_start|>, "user", "\n"


@cache
def tokenizer() -> object:
    """Qwen's, from the ComfyUI that `COMFYUI_PATH` names."""
    return core.text.tokenizer.Tokenizer(
        Path(os.environ["COMFYUI_PATH"]) / "comfy" / "text_encoders" / "qwen25_tokenizer"
    )


@cache
def used_tokens() -> tuple[int, ...]:
    """Ids of Qwen3's vocabulary in captions, instructions, questions and answers, ascending."""
    rng = Random(1)
    scenes = [
        flat_shapes.make_scene(rng, test, shapes) for test in (False, True) for shapes in (1, 2) for _ in range(1500)
    ]
    found = {int(control) for control in prompts.Control}
    answers = [answer for scene in scenes[:3000] for answer in (phrasings.describe(scene), "yes", "no", "one", "two")]
    for parts in (prompts.unconditional(), prompts.answer_start(), prompts.answer_end()):
        found.update(t for t in tokenizer().encode(parts) if isinstance(t, int))
    for text in (*phrasings.every_text(scenes), *answers, *phrasings.COLOURS, *phrasings.KINDS):
        for parts in (prompts.text_to_image(text), prompts.about_image(text), [text]):
            found.update(t for t in tokenizer().encode(parts) if isinstance(t, int))
    return tuple(sorted(found))


@cache
def _row_of() -> dict[int, int]:
    return {token: row for row, token in enumerate(used_tokens())}


@cache
def rest() -> float:
    """Logarithm of the number of tokens that are not used."""
    return math.log(VOCABULARY - len(used_tokens()))


def encode(parts: Sequence[object]) -> list[int]:
    """Rows of the prompt's tokens, without its picture."""
    return [_row_of()[t] for t in tokenizer().encode(parts) if isinstance(t, int)]


def row(control: int) -> int:
    """Row of a control token."""
    return _row_of()[int(control)]


def configuration(vocabulary: int) -> object:
    """The pack's `OvisConfig`."""
    return config.OvisConfig(
        language=config.LanguageConfig(vocab_size=vocabulary, **LANGUAGE),
        vision=config.VisionConfig(**VISION),
        decoder=config.DecoderConfig(**DECODER),
        vae=config.VaeConfig(**VAE),
    )


def make_multimodal() -> torch.nn.Module:
    """Language model and visual tokenizer, initialised for training."""
    torch.manual_seed(0)
    model = core.multimodal.Multimodal(configuration(len(used_tokens())))
    with torch.no_grad():
        model.llm.model["embed_tokens"].weight.normal_(0, 0.06)
        model.vte.weight.normal_(0, 0.3)
        model.visual_tokenizer.backbone.preprocessor.pos_embed.normal_(0, 0.2)
        model.visual_tokenizer.head[1].weight.fill_(2.5)
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
                weight.mul_(0.5)
    return model.requires_grad_(True)


def make_decoder() -> torch.nn.Module:
    """The decoder, initialised for training: no modulation yet, small residuals."""
    torch.manual_seed(0)
    decoder = core.networks.decoder.Decoder(configuration(len(used_tokens())).decoder)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if "cls_token" in name:
                weight.normal_(0, 0.5)
            if "mod" in name and name.endswith("weight"):
                weight.mul_(0.1)
            if name.startswith("final_layer.linear"):
                weight.mul_(0.1)
            if name.endswith(("attn.proj.weight", "mlp.2.weight", "linear2.weight")):
                weight.mul_(0.7)
    return decoder.requires_grad_(True)


def make_vae() -> torch.nn.Module:
    """diffusers' VAE."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **VAE,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=32,
        scaling_factor=LATENT_SCALE,
    )


# ---- pictures


CONDITION_SIDE = 140  # pixels a side that the rule for conditions gives to a picture of 128


@cache
def _stretch(before: int, after: int) -> Tensor:
    """PIL's bicubic from one number of pixels to another as a matrix (after, before)."""
    unit = Image.fromarray(np.eye(before, dtype=np.float32))
    return torch.from_numpy(np.array(unit.resize((before, after), Image.Resampling.BICUBIC)))


def to_patches(pictures: Tensor, for_condition: bool, chosen: Tensor | None = None) -> Tensor:
    """Pictures (B, 3, 128, 128) in 0..1 -> (B, k, 4, 588) normalised patches, as `ovis_core.pixels` cuts them.

    for_condition  as the source of an edit, which is resized twice; otherwise as the picture of a question
    chosen  (B, k) visual tokens; without it all of them
    """
    if chosen is None:
        chosen = torch.arange(TOKENS).expand(len(pictures), -1)
    if for_condition:
        matrix = _stretch(flat_shapes.SIDE, CONDITION_SIDE)
        pictures = _to_bytes(matrix @ _to_bytes(pictures @ matrix.T))  # as PIL: rows first, rounded both times
    first, matrices = _windows(pictures.shape[-1])
    rows, columns = chosen // GRID, chosen % GRID
    span = torch.arange(matrices.shape[-1])
    down, across = (first[at][..., None] + span for at in (rows, columns))  # b k s
    batch = torch.arange(len(pictures))[:, None, None, None]
    windows = pictures.permute(0, 2, 3, 1)[batch, down[..., :, None], across[..., None, :]].movedim(-1, 2)  # b k c s s
    wide = _to_bytes(windows @ matrices[columns].mT[:, :, None])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (core.pixels.MEAN, core.pixels.STD))
    large = (_to_bytes(matrices[rows][:, :, None] @ wide) - mean) / std
    return large.unflatten(4, (2, 14)).unflatten(3, (2, 14)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


@cache
def _windows(side: int) -> tuple[Tensor, Tensor]:
    """For each row of visual tokens the first pixel that it is made of (16,), and the matrix (16, 28, pixels)."""
    parts = _stretch(side, VISION["image_size"]).unflatten(0, (GRID, -1))
    used = [part.any(0).nonzero() for part in parts]
    width = max(int(at[-1] - at[0]) + 1 for at in used)
    first = [min(int(at[0]), side - width) for at in used]
    return torch.tensor(first), torch.stack([part[:, at : at + width] for at, part in zip(first, parts, strict=True)])


def _to_bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 1).mul(255).round() / 255


def encode_images(model: torch.nn.Module, patches: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (B, k, hidden) of the visual tokens `chosen` (B, k) alone, their features (B, k, 4 * width), and the
    states of their patches after the first block (B, 4 * k, width).

    patches  `to_patches` of these tokens. With every token chosen this is the pack's own visual tokenizer.
    """
    backbone, (batch, k) = model.visual_tokenizer.backbone, chosen.shape
    before = backbone.preprocessor
    index = (chosen[..., None] * PATCHES + torch.arange(PATCHES)).flatten(1)
    x = F.linear(patches.flatten(1, 2), before.patchifier["proj"].weight.flatten(1), before.patchifier["proj"].bias)
    side = VISION["image_size"] // VISION["patch_size"]
    learned = core.networks.vision.group_patches(before.pos_embed[0].unflatten(0, (side, side)), 2)
    x = before.patchifier["norm"](x) + learned[index]
    cos, sin = (table[index] for table in _vision_tables())
    first, *others = backbone.trunk["blocks"]
    x = early = first(x, cos, sin)
    for block in others:
        x = block(x, cos, sin)
    features = x.reshape(batch, k, -1)
    return model.visual_tokenizer.words(features) @ model.vte.weight[: -config.INDICATORS], features, early


@cache
def _vision_tables() -> tuple[Tensor, Tensor]:
    side, head = VISION["image_size"] // VISION["patch_size"], VISION["hidden_size"] // VISION["num_attention_heads"]
    tables = core.networks.rotary.grid_tables(side, side, head, 10000.0, torch.device("cpu"))
    return tuple(core.networks.vision.group_patches(table, 2) for table in tables)


@cache
def _line_tables() -> tuple[Tensor, Tensor]:
    return core.networks.rotary.line_tables(768, LANGUAGE["head_dim"], LANGUAGE["rope_theta"], torch.device("cpu"))


# ---- sequences


def join(model: torch.nn.Module, ids: Tensor, embeddings: Tensor) -> Tensor:
    """Rows of text ids (B, L), an image's embeddings (B, k, hidden) in their place -> (B, L + k + 2, hidden)."""
    text = model.llm.model["embed_tokens"](ids)
    begin, end = model.vte.weight[torch.tensor(core.multimodal.BRACKETS[prompts.Placeholder.IMAGE])]
    begin, end = (mark.expand(len(ids), 1, -1) for mark in (begin, end))
    return torch.cat((text[:, :BEFORE], begin, embeddings, end, text[:, BEFORE:]), 1)


def positions(chosen: Tensor, length: int) -> Tensor:
    """Positions (B, L + k + 2) of `join`'s rows, as if every visual token were there."""
    batch = len(chosen)
    after = BEFORE + 1 + TOKENS + torch.arange(length - BEFORE + 1)
    return torch.cat((torch.arange(BEFORE + 1).expand(batch, -1), BEFORE + 1 + chosen, after.expand(batch, -1)), 1)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def states(
    model: torch.nn.Module, x: Tensor, at: Tensor, attend: Callable[[int], Attend] | None = None
) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, hidden) at positions (B, L) or (L,) -> last states, normed, and those before the last block.

    attend  the attention of the i-th block, for keys and values that were computed before
    """
    cos, sin = (table[at] for table in _line_tables())
    *blocks, last = model.llm.blocks
    for i, block in enumerate(blocks):
        x = block(x, cos, sin, attend(i) if attend else causal_attention)
    final = last(x, cos, sin, attend(len(blocks)) if attend else causal_attention)
    return model.llm.model["norm"](final), x


def logits(model: torch.nn.Module, hidden: Tensor) -> Tensor:
    """States (n, hidden) -> logits (n, used tokens + 1); the last stands for every token that is not used."""
    used = F.linear(hidden, model.llm.model["embed_tokens"].weight)
    return torch.cat((used, used.new_full((len(used), 1), rest())), 1)


class Conditioner:
    """The pack's condition, with a picture's part computed once for many texts about it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.start = torch.tensor(encode(prompts.unconditional())[:BEFORE])

    def picture(self, pictures: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Pictures (B, 3, 128, 128) -> conditions (B, 261, 2 * hidden) to their end, and keys and values by block."""
        chosen = torch.arange(TOKENS).expand(len(pictures), -1)
        embeddings, *_ = encode_images(self.model, to_patches(pictures, True), chosen)
        kept: list[tuple[Tensor, Tensor]] = []

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.append((k, v))
            return causal_attention(q, k, v)

        x = join(self.model, self.start.expand(len(pictures), -1), embeddings)
        return torch.cat(states(self.model, x, torch.arange(x.shape[1]), lambda _: attend), -1), kept

    def text(self, rows: Sequence[list[int]], kept: list[tuple[Tensor, Tensor]], owner: Sequence[int]) -> list[Tensor]:
        """Conditions (L, 2 * hidden) of what follows the picture; `owner` says whose keys and values each row reads."""
        out: list[Tensor] = [torch.empty(0)] * len(rows)
        lengths: dict[int, list[int]] = {}
        for i, ids in enumerate(rows):
            lengths.setdefault(len(ids), []).append(i)
        for length, members in lengths.items():
            for at in range(0, len(members), 64):
                part = members[at : at + 64]
                mine = torch.tensor([owner[i] for i in part])

                def attend(block: int, mine: Tensor = mine) -> Attend:
                    keys, values = (tensor[mine] for tensor in kept[block])

                    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                        return causal_attention(q, torch.cat((keys, k), 2), torch.cat((values, v), 2))

                    return run

                x = self.model.llm.model["embed_tokens"](torch.tensor([rows[i] for i in part]))
                begin = BEFORE + TOKENS + 2
                both = torch.cat(states(self.model, x, torch.arange(begin, begin + length), attend), -1)
                for i, condition in zip(part, both, strict=True):
                    out[i] = condition
        return out


def after_picture(parts: Sequence[object]) -> list[int]:
    """Rows of a prompt's text behind its picture."""
    return encode(parts)[BEFORE:]
