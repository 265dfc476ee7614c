"""How fast questions about images are answered, beside transformers' `generate` on the same random weights.

    python benchmarks/understand.py --comfyui PATH [--reference DIR]

Run it with the Python of that ComfyUI. Every row is measured in the same run, one side after the other.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starting import parse, parser, qwen25, start_comfyui

SIZE = 768  # pixels a side of each image; 784 after the model's own resize
QUESTION = "Describe each image."


@dataclass
class Row:
    """One side's medians.

    first   seconds to the first token, the images' way through the visual tokenizer included
    speed   tokens a second after the first
    """

    side: str
    images: int
    positions: int
    first: float
    speed: float
    tokens: list[int]


def arguments() -> argparse.Namespace:
    """The command line."""
    line = parser(__doc__.split("\n")[0])
    line.add_argument("--small", action="store_true", help="a shrunken model")
    line.add_argument("--images", type=int, nargs="+", default=[1, 2, 4])
    line.add_argument("--tokens", type=int, default=128, help="tokens to write")
    line.add_argument("--repeat", type=int, default=3)
    line.add_argument("--cpu", action="store_true")
    line.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    line.add_argument("--reference", type=Path, help="a release's folder: its own code is run too, on these weights")
    return parse(line)


def main() -> None:
    """Starts ComfyUI's core on the device that was asked for."""
    args = arguments()
    import torch

    start_comfyui(args.comfyui, cpu=args.cpu or not torch.cuda.is_available())
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        measure_all(args, Path(folder))


def measure_all(args: argparse.Namespace, folder: Path) -> None:
    """Measures and prints."""
    import torch
    from comfy import model_management

    from full_size import FULL, SMALL, random_weights, write_release
    from ovis_core.layout import LANGUAGE, TABLE, VISION
    from ovis_core.native.clip import build_clip
    from ovis_core.stored import Stored

    config, dtype = SMALL if args.small else FULL, getattr(torch, args.dtype)
    device = model_management.get_torch_device()
    parts, authors = (LANGUAGE, VISION, TABLE), None
    if args.reference:
        from safetensors.torch import load_file

        from reference import Reference

        file = write_release(config, folder, dtype, qwen25(args.comfyui), args.reference)
        weights = {name: value for name, value in load_file(file).items() if name.startswith(parts)}
        authors = Reference(args.reference, folder, dtype, device)
    else:
        weights = random_weights(config, parts, dtype, torch.device("cpu"))
    clip = build_clip(config, {name: Stored.of(tensor) for name, tensor in weights.items()}, None)
    model_management.load_models_gpu([clip.patcher], memory_required=4 << 30)
    model = clip.cond_stage_model
    model.set_clip_options({"execution_device": device})
    theirs = Transformers(config.language, weights, device)
    sides = answering(clip, theirs, authors, args.tokens)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    read = sum(value.nbytes for key, value in weights.items() if key.startswith(LANGUAGE))
    print(f"{name}, torch {torch.__version__}, {args.dtype}, {'full size' if config == FULL else 'shrunken'}")
    print(f"weights read for each token: {read / 1e9:.2f} GB; floor {1e3 * read / bandwidth(device):.2f} ms a token\n")
    print("| images | positions | side | first token, s | tokens/s | ms a token | tokens/s of generate's | same ids |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for images in args.images:
        measured = measure(sides, images, args.repeat)
        base = next(row for row in measured if row.side == "generate")
        for row in measured:
            same = sum(a == b for a, b in zip(row.tokens, base.tokens, strict=False))
            print(
                f"| {images} | {row.positions} | {row.side} | {row.first:.3f} | {row.speed:.1f} | "
                f"{1e3 / row.speed:.2f} | {row.speed / base.speed:.2f} | {same} of {len(base.tokens)} |",
                flush=True,
            )
        rows += measured
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")


def answering(clip: Any, theirs: Transformers | None, authors: Any, tokens: int) -> dict[str, Callable[[int], Any]]:
    """What each side does with a number of images.

    theirs   None: no such side
    authors  None, or a `reference.Reference`
    """
    model = clip.cond_stage_model
    sides: dict[str, Callable[[int], tuple[int, float, float, list[int]]]] = {
        "ours": lambda images: ours(model, question(clip, images), tokens)
    }
    if theirs:
        sides["generate"] = lambda images: theirs.answer(model, question(clip, images), tokens)
    if authors:
        sides["authors"] = lambda images: authors.answer(photos(images), tokens)
    return sides


def measure(sides: dict[str, Callable[[int], Any]], images: int, repeat: int) -> list[Row]:
    """Medians of each side, which take turns; the first turn is not counted."""
    seen: dict[str, list[Any]] = {side: [] for side in sides}
    for turn in range(repeat + 1):
        for side, answer in sides.items():
            gc.collect()
            result = answer(images)
            if turn:
                seen[side].append(result)
    return [
        Row(
            side,
            images,
            results[0][0],
            statistics.median(result[1] for result in results),
            statistics.median(result[2] for result in results),
            results[0][3],
        )
        for side, results in seen.items()
    ]


def photos(count: int) -> list[Any]:
    """Images of noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(count)]


def question(clip: Any, images: int) -> list[Any]:
    """Tokens of the prompt."""
    from ovis_core.pixels import to_tensor

    return clip.tokenizer.question(QUESTION, [to_tensor(photo) for photo in photos(images)])


def ours(model: Any, tokens: list[Any], room: int) -> tuple[int, float, float, list[int]]:
    """Positions, seconds to the first token, tokens a second, tokens."""
    from ovis_core import generation
    from ovis_core.next_token import GREEDY

    start = now()
    cache, logits = model.read(tokens, room, model.run_device, model.writing_dtype)
    positions = cache.length
    written = generation.write(model, cache, logits, GREEDY, room, ends=False)
    ids = [next(written)]
    first = now()
    ids.extend(written)
    return positions, first - start, (room - 1) / (now() - first), ids


class Transformers:
    """transformers' own Qwen3 on the same weights; pictures go through our visual tokenizer."""

    def __init__(self, config: Any, weights: dict[str, Any], device: Any) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM
        from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

        qwen3 = Qwen3Config(**vars(config), tie_word_embeddings=True, attn_implementation="sdpa")
        with torch.device("meta"):
            self.model = Qwen3ForCausalLM(qwen3)
        own = {key.removeprefix("llm."): value.to(device) for key, value in weights.items() if key.startswith("llm.")}
        own["lm_head.weight"] = own["model.embed_tokens.weight"]
        self.model.load_state_dict(own, assign=True)
        self.model.model.rotary_emb = Qwen3RotaryEmbedding(qwen3).to(device)
        self.model.eval().requires_grad_(False)

    def answer(self, model: Any, tokens: list[Any], room: int) -> tuple[int, float, float, list[int]]:
        """As `ours`."""
        start = now()
        embeds = model.embed(tokens, model.run_device, model.writing_dtype)[None]
        seen = now() - start
        return time_generate(
            lambda new, clock: self.model.generate(inputs_embeds=embeds, streamer=clock, **greedy(new)),
            seen,
            room,
            embeds,
        )


def greedy(new: int) -> dict[str, Any]:
    """What makes `generate` write exactly `new` tokens."""
    return {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


class Clock:
    """A streamer for `generate`, which it tells of the prompt and then of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Notes the time."""
        self.times.append(now())

    def end(self) -> None:
        """Nothing more is to come."""


def time_generate(
    generate: Callable[..., Any], seen: float, room: int, embeds: Any
) -> tuple[int, float, float, list[int]]:
    """As `ours`; `generate` takes how many tokens to write, and a streamer."""
    clock, start = Clock(), now()
    ids = generate(room, clock)[0].tolist()
    _, first, *_, last = clock.times
    return embeds.shape[1], seen + first - start, (room - 1) / (last - first), ids


def now() -> float:
    """Seconds, when the device has done all that was asked of it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def bandwidth(device: Any) -> float:
    """Bytes a second that the device reads, from a sum over a gigabyte."""
    import torch

    data = torch.zeros(1 << 28, dtype=torch.float32, device=device)
    times = []
    for _ in range(5):
        start = now()
        data.sum()
        times.append(now() - start)
    return data.nbytes / min(times)


if __name__ == "__main__":
    main()
