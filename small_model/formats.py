"""Compares formats of weights: sizes, time to load (bf16: 1), change of the results, and the share that is right.

    python small_model/formats.py --comfyui PATH [--count 40] [--only int8,nvfp4] [--model FILE]

Converts the model as `scripts/convert.py` does and runs the files in a real ComfyUI inside this process, on the CPU,
with the Python of an environment that ComfyUI runs in. The cases are those of `cases.py`. A second table has the sizes
of the published model, computed from its layout.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from comfy_imports import set_up_imports

import workspace
from console import chosen_names, guarded, positive_int
from run_options import add_comfyui_option

if TYPE_CHECKING:
    from torch import Tensor

    from ovis_core.weights.precision import Precision

BASE = "bf16"
LOADS = 9  # the fastest counts, because other processes slow some of them down


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_comfyui_option(parser)
    parser.add_argument("--model", type=Path, help="a file or folder of weights (default: the built-in model)")
    parser.add_argument("--count", type=positive_int, default=40, help="images, and questions, for each format")
    parser.add_argument("--only", help="formats, with commas between; bf16 is always measured, to compare with")
    parser.add_argument("--fast", action="store_true", help="multiply in the formats too")
    parser.add_argument("--json", type=Path, help="results also as JSON, one line a row")
    args = parser.parse_args()
    set_up_imports(workspace.describe_comfyui(args.comfyui, "").path)
    only = chosen_names("--only", args.only, list(formats()))
    print("| the published model, GB | diffusion model | language model | visual tokenizer | VAE | all |")
    print("|---|---|---|---|---|---|")
    for name, precision in formats().items():
        parts = published_sizes(precision)
        print(f"| {name} | " + " | ".join(f"{size / 1e9:.2f}" for size in (*parts, sum(parts))) + " |")
    from ovis_core.weights import built_in

    print(
        "\n| format | file, MB | weights in memory, MB | load time | change of the conditions | change of the latents "
        "| images correct | answers correct |\n|---|---|---|---|---|---|---|---|"
    )
    base: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or built_in.unpack(Path(folder))
        for name, precision in formats().items():
            if name not in {BASE, *only}:
                continue
            file = Path(folder) / f"{name}.safetensors"
            row = _measure(model, file, precision, args.count, args.fast and name != BASE)
            file.unlink()
            conditions, latents = row.pop("conditions"), row.pop("latents")
            base = base or {"conditions": conditions, "latents": latents, "load": row["load"]}
            row |= {"format": name, "moved": [_apart(conditions, base["conditions"]), _apart(latents, base["latents"])]}
            if args.json:
                with args.json.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
            load = row["load"] / base["load"]
            moved = " | ".join(f"{share:.1%}" for share in row["moved"]) if name != BASE else "0 | 0"
            print(
                f"| {name} | {row['file'] / 1e6:.1f} | {row['memory'] / 1e6:.1f} | {load:.2f} | {moved} "
                f"| {row['pictures']:.0%} | {row['answers']:.0%} |",
                flush=True,
            )
    return 0


def formats() -> dict[str, Precision]:
    """The choices of `convert.py` that this ComfyUI can load, bf16 first."""
    from ovis_core.native.compat import quantized_formats
    from ovis_core.weights.precision import PRECISIONS, QUANTIZED_PRECISIONS

    offered = quantized_formats()
    eight = {"fp8_e4m3fn": PRECISIONS["fp8_e4m3fn"]}
    return {BASE: PRECISIONS[BASE]} | eight | {n: p for n, p in QUANTIZED_PRECISIONS.items() if p.format in offered}


def published_sizes(precision: Precision) -> tuple[int, ...]:
    """Bytes of the published model's decoder, language model, visual tokenizer and VAE, all in bf16 but what
    `precision` changes; computed from the shapes of its tensors.
    """
    import torch

    from ovis_core.weights import layout
    from ovis_core.weights.lazy_tensors import LazyTensor
    from ovis_core.weights.precision import in_precision
    from ovis_core.weights.release import RELEASE

    def size(*prefixes: str) -> int:
        shapes = {name: shape for name, shape in layout.tensor_shapes(RELEASE) if name.startswith(prefixes)}
        plain = {
            name.removeprefix(layout.DECODER): LazyTensor(shape, torch.bfloat16, lambda: None)
            for name, shape in shapes.items()
        }
        kept = plain if layout.VAE in prefixes else in_precision(plain, precision)
        return sum(tensor.nbytes for tensor in kept.values())

    return size(layout.DECODER), size(layout.LANGUAGE), size(layout.VISION, layout.TABLE), size(layout.VAE)


def _measure(model: Path, file: Path, precision: Precision, count: int, fast: bool) -> dict[str, Any]:
    """Converts the model to `file` and runs it."""
    import flat_shapes
    import torch
    from cases import answer_verdict, first_cases, picture_verdict
    from sampling import Setting, SmallModelPipeline

    from ovis_core.native.conditions import text_to_image
    from ovis_core.native.understanding import understand
    from ovis_core.text.decoding import GREEDY
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.conversion import write_one

    write_one(open_model(model), file, precision)
    conditions, latents, hits, answers = [], [], [], []
    with torch.inference_mode():  # as in ComfyUI, from loading on
        loads = []
        for _ in range(LOADS):
            begun = time.perf_counter()
            pipeline = SmallModelPipeline(file, "fp8_e4m3fn_fast" if fast else "default")
            loads.append(time.perf_counter() - begun)
        memory = pipeline.model.model_size() + pipeline.clip.patcher.model_size() + pipeline.vae.patcher.model_size()
        for seed, case in enumerate(first_cases("paint", count)):
            positive, _ = text_to_image(pipeline.clip, case.prompt, "", flat_shapes.SIDE, flat_shapes.SIDE)
            conditions.append(positive[0][0])
            latents.append(pipeline.sample(Setting("", ""), case, seed))
            hits.append(picture_verdict(case, pipeline.decode(Setting("", ""), latents[-1]))[0])
        for case in first_cases("ask", count):
            picture = flat_shapes.draw(case.sources)[0].permute(1, 2, 0)
            answer = understand(pipeline.clip, case.prompt, [picture], (), 8, 16, False, GREEDY).text
            answers.append(answer_verdict(case, answer)[0])
    shares = {"pictures": sum(hits) / count, "answers": sum(answers) / count}
    sizes = {"file": file.stat().st_size, "memory": memory, "load": min(loads)}
    return {**sizes, **shares, "conditions": conditions, "latents": latents}


def _apart(found: list[Tensor], base: list[Tensor]) -> float:
    """The mean distance, relative to the norm of `base`."""
    return sum(float((a - b).norm() / b.norm()) for a, b in zip(found, base, strict=True)) / len(base)


if __name__ == "__main__":
    sys.exit(guarded(main))
