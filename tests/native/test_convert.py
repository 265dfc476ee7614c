"""Conversion to one file and to parts."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import make_checkpoint
from helpers.headers import header, misplaced
from helpers.paths import ROOT
from helpers.pipeline import latent_and_answer
from helpers.tokenizer_files import write_tokenizer
from ovis_core.weights.checkpoint import open_model, open_parts
from ovis_core.weights.precision import LARGE
from ovis_core.weights.safetensors_file import CheckpointError

PARTS = "diffusion_model.safetensors, text_encoder.safetensors and vae.safetensors"


def convert(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "convert.py", *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def converted(*arguments: Any) -> None:
    ran = convert(*arguments)
    assert ran.returncode == 0, ran.stderr
    assert "GB" in ran.stdout


def contents(checkpoint: Any) -> dict[str, Tensor]:
    """Every tensor, by the name of its part and its own."""
    found = {}
    for part in checkpoint.components.values():
        files = {file: load_file(file) for file in set(part.files.values())}
        found |= {f"{part.kind.title}/{n}": files[file][part.prefix + n] for n, file in part.files.items()}
    return found


def test_conversion_to_one_file_and_to_parts_keeps_everything(
    release: Path, qwen25_tokenizer: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(release, tmp_path / "source"))
    write_tokenizer(source, qwen25_tokenizer)
    one, parts, again = tmp_path / "one.safetensors", tmp_path / "parts", tmp_path / "again.safetensors"
    converted(source, one)
    converted(one, parts, "--parts")
    opened = open_parts(*(parts / f"{name}.safetensors" for name in ("diffusion_model", "text_encoder", "vae")))
    expected = contents(open_model(source))
    for checkpoint in (open_model(one), opened):
        assert checkpoint.config == open_model(source).config
        found = contents(checkpoint)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert checkpoint.tokenizer["vocab.json"] == (source / "vocab.json").read_bytes()
    shutil.copy(parts / "text_encoder.safetensors", again)
    assert open_parts(one, again, parts / "vae.safetensors").config == opened.config


@pytest.mark.parametrize("dtype", ["default", "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_scaled"])
@pytest.mark.parametrize("source", ["F32", "BF16"])
def test_tensors_in_converted_files_are_aligned(
    raw_config: dict[str, Any], qwen25_tokenizer: Path, tmp_path: Path, source: str, dtype: str
) -> None:
    """In one file and in parts; metadata of any length come after the weights."""
    from ovis_core.weights.conversion import write_one, write_parts
    from ovis_core.weights.precision import PRECISIONS, QUANTIZED_PRECISIONS

    folder = make_checkpoint.write_release(tmp_path / "source", raw_config, dtype=source)
    write_tokenizer(folder, qwen25_tokenizer)
    for name in ("vocab.json", "merges.txt"):
        text = (folder / name).read_bytes()
        (folder / name).write_bytes(text + b"\n" * (1 + len(text) % 2))  # of odd length
    precision = (PRECISIONS | QUANTIZED_PRECISIONS)[dtype]
    files = write_one(open_model(folder), tmp_path / "one.safetensors", precision)
    files += write_parts(open_model(files[0]), tmp_path / "parts", precision)
    lengths = [entry["shape"] for file in files for entry in header(file)[1].values() if entry["dtype"] == "U8"]
    assert any(length[0] % 2 for length in lengths)
    for file in files:
        begin, entries = header(file)
        assert begin % 8 == 0
        assert misplaced(file) == []
        names = sorted(entries, key=lambda name: entries[name]["data_offsets"])
        ends = [0] + [entries[name]["data_offsets"][1] for name in names]
        assert [entries[name]["data_offsets"][0] for name in names] == ends[:-1]
        assert file.stat().st_size == begin + ends[-1]


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_converted_weights_have_the_chosen_dtype(release: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    one = tmp_path / "one.safetensors"
    converted(release, one, "--dtype", name)
    expected, found = contents(open_model(release)), contents(open_model(one))
    for key, tensor in found.items():
        wanted = expected[key] if key.startswith("VAE") else expected[key].to(dtype)
        assert torch.equal(tensor, wanted)


def test_fp8_files_load_unchanged(release: Path, comfyui: Path, tmp_path: Path) -> None:
    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.precision import PRECISIONS

    one = tmp_path / "one.safetensors"
    converted(release, one, "--dtype", "fp8_e4m3fn")
    small = {name for name, tensor in contents(open_model(one)).items() if tensor.dtype == torch.float8_e4m3fn}
    assert small == {name for name in contents(open_model(release)) if LARGE.search(name.split("/")[1])}
    stored = load(open_model(one))
    cast = load(open_model(release), PRECISIONS["fp8_e4m3fn"])
    for a, b in zip(stored[:2], cast[:2], strict=True):
        ours, theirs = (
            dict(x.patcher.model.named_parameters()) if hasattr(x, "patcher") else dict(x.model.named_parameters())
            for x in (a, b)
        )
        assert ours.keys() == theirs.keys()
        assert all(ours[n].dtype == theirs[n].dtype and torch.equal(ours[n].float(), theirs[n].float()) for n in ours)


@pytest.fixture(scope="module")
def scaled(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in 8 bits with scales."""
    one = tmp_path_factory.mktemp("scaled") / "one.safetensors"
    converted(release, one, "--dtype", "fp8_scaled")
    return one


def test_scales_use_the_full_range_of_fp8(release: Path, scaled: Path) -> None:
    expected, found = contents(open_model(release)), contents(open_model(scaled))
    scales = {name for name in found if name.endswith(".weight_scale")}
    assert scales == {
        name.removesuffix("weight") + "weight_scale" for name in expected if LARGE.search(name.split("/")[1])
    }
    for name in scales:
        weight = name.removesuffix("_scale")
        assert found[weight].dtype == torch.float8_e4m3fn
        assert float(found[weight].float().abs().max()) == 448
        moved = found[weight].float() * found[name] - expected[weight]
        assert float(moved.norm() / expected[weight].norm()) < 0.03
    assert all(torch.equal(found[name], expected[name]) for name in expected if f"{name}_scale" not in scales)


def test_scales_reduce_the_error_of_small_weights() -> None:
    """Below 2^-6 the steps of float8_e4m3fn no longer shrink with the value."""
    from ovis_core.weights.lazy_tensors import LazyTensor
    from ovis_core.weights.precision import PRECISIONS, QUANTIZED_PRECISIONS, in_precision

    name = "double_blocks.0.img_mlp.0.weight"
    normal = torch.randn(256, 1536, generator=torch.Generator().manual_seed(0))

    def moved(precision: Any, deviation: float) -> float:
        matrix = deviation * normal
        kept = {
            n: tensor.read().float() for n, tensor in in_precision({name: LazyTensor.of(matrix)}, precision).items()
        }
        return float((kept[name] * kept.get(f"{name}_scale", 1.0) - matrix).norm() / matrix.norm())

    plain, scaled = PRECISIONS["fp8_e4m3fn"], QUANTIZED_PRECISIONS["fp8_scaled"]
    assert moved(plain, 0.1) == pytest.approx(moved(scaled, 0.1), rel=0.1)
    assert moved(scaled, 0.005) == pytest.approx(moved(scaled, 0.1), rel=0.1)
    assert moved(plain, 0.005) > 3 * moved(scaled, 0.005)


def test_scaled_fp8_files_load_unchanged(
    scaled: Path, comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results equal those of dequantized weights, also after core has saved and loaded the model."""
    import comfy.sd
    import comfy.utils

    # Like --disable-mmap: mapped weights have the alignment of their file, and on some CPUs that changes the order of
    # sums.
    monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", True)

    kept, text, (model, clip, vae) = latent_and_answer(scaled)
    plain, plain_text, (whole, *_) = latent_and_answer(scaled, "fp32")
    assert float((kept - plain).norm() / plain.norm()) < 1e-5
    assert text == plain_text
    assert model.model_size() < 0.4 * whole.model_size()
    again = tmp_path / "again.safetensors"
    comfy.sd.save_checkpoint(str(again), model, clip, vae)
    assert misplaced(again) == []
    assert torch.equal(latent_and_answer(again)[0], kept)
    with pytest.raises(CheckpointError, match="which the format float8_e4m3fn does not have"):
        open_model(with_scales_by_row(scaled, tmp_path / "rows.safetensors"))
    back = tmp_path / "back.safetensors"
    converted(scaled, back, "--dtype", "fp32")
    assert torch.equal(latent_and_answer(back)[0], plain)


def with_scales_by_row(file: Path, out: Path) -> Path:
    from safetensors import safe_open

    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".weight_scale"))
    tensors[name] = torch.ones(4, 1)
    with safe_open(file, framework="pt") as opened:
        save_file(tensors, out, metadata=opened.metadata())
    return out


@torch.no_grad()
def test_patch_on_scaled_weights(scaled: Path, comfyui: Path) -> None:
    """A LoRA takes effect, whether the weight is patched in place or at each use."""
    from ovis_core.native.loading import load

    model, _, _ = load(open_model(scaled))
    key = "diffusion_model.double_blocks.0.img_mlp.0.weight"
    layer = model.model.diffusion_model.double_blocks[0].img_mlp[0]
    x = torch.eye(layer.in_features)
    before = layer(x)
    patched = model.clone()
    patched.add_patches({key: ("diff", ((layer.bias - before).T / 4,))}, 1.0)
    expected = before - (before - layer.bias) / 4
    for budget in (1 << 40, 1):
        patched.load(torch.device("cpu"), lowvram_model_memory=budget)
        assert float((layer(x) - expected).norm() / (before - layer.bias).norm()) < 0.04
        patched.detach()
        assert torch.equal(layer(x), before)


def test_failed_conversion_leaves_no_files(release: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    cut = Path(shutil.copytree(release, tmp_path / "cut"))
    (cut / "model-00002-of-00002.safetensors").unlink()
    for arguments, words in (
        ((release, taken), "already exists"),
        ((cut, tmp_path / "a.safetensors"), "lacks model-00002"),
        ((tmp_path / "none", tmp_path / "a.safetensors"), "none does not exist"),
        ((release, tmp_path / "a.bin"), "expected a file name that ends in .safetensors"),
        ((release, tmp_path / "a.safetensors", "--parts"), f"choose a folder for {PARTS}"),
        ((release, taken / "a.safetensors"), f"{taken} cannot be written"),
    ):
        ran = convert(*arguments)
        assert ran.returncode != 0
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr
        assert "unexpected" not in ran.stderr
        assert len(ran.stderr.strip().splitlines()) == 1
    assert taken.read_bytes() == b"mine"
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob("a.*"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_check_values_finds_damaged_values(release: Path, tmp_path: Path, value: float) -> None:
    damaged, one = Path(shutil.copytree(release, tmp_path / "damaged")), tmp_path / "one.safetensors"
    for file in damaged.glob("*.safetensors"):
        tensors = load_file(file)
        for key in tensors:
            if key.endswith("double_blocks.0.img_attn.qkv.weight"):
                tensors[key][1, 2] = value
        save_file(tensors, file, metadata={"format": "pt"})
    ran = convert(damaged, one, "--check-values")
    assert ran.returncode == 1
    words = r"img_attn\.qkv\.weight contains NaN or infinity, so the file is damaged; download it again\."
    assert re.search(words, ran.stderr)
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not one.exists()
    converted(release, one, "--check-values")


def test_help_and_errors_list_the_part_files() -> None:
    for arguments in (("--help",), ("source", "out", "--parts", "decoder")):
        ran = convert(*arguments)
        assert PARTS in " ".join((ran.stdout + ran.stderr).split())
    assert ran.returncode == 2


def resident(file: Path) -> float:
    """The share of a file that is in the system's cache."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        answer = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages)
        del start
    assert answer == 0
    return sum(page & 1 for page in pages) / len(pages)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system does not drop a file from its cache")
def test_converted_file_is_read_back_from_the_disk(release: Path, tmp_path: Path) -> None:
    from ovis_core.weights import conversion
    from ovis_core.weights.precision import DEFAULT

    probe, one = tmp_path / "probe", tmp_path / "one.safetensors"
    probe.write_bytes(bytes(1 << 20))
    with probe.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(probe):
        pytest.skip("this file system is in memory")
    seen: dict[str, float] = {}

    def report(done: int, total: int, doing: str) -> None:
        seen.setdefault(doing, resident(one.with_name(f"{one.name}.part")) if doing == "checking" else 1.0)

    conversion.write_one(open_model(release), one, DEFAULT, report)
    assert list(seen) == ["writing", "checking"]
    assert one.stat().st_size > 2 * conversion.BLOCK
    assert seen["checking"] < 0.8  # the first block, and what the system reads ahead


def test_error_if_the_disk_changes_bytes(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.weights import conversion
    from ovis_core.weights.precision import DEFAULT

    write = conversion._write_file

    def damage(file: Path, *arguments: Any) -> Any:
        sums = write(file, *arguments)
        with file.open("r+b") as opened:
            opened.seek(-5, 2)
            last = opened.read(1)
            opened.seek(-5, 2)
            opened.write(bytes([last[0] ^ 1]))
        return sums

    monkeypatch.setattr(conversion, "_write_file", damage)
    with pytest.raises(CheckpointError, match="was not the same when it was read back"):
        conversion.write_one(open_model(release), tmp_path / "one.safetensors", DEFAULT)
    assert not list(tmp_path.glob("one*"))
