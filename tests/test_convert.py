"""Conversion to one file and to parts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import make_checkpoint
from conftest import ROOT
from ovis_core.checkpoint import open_model, open_parts
from ovis_core.precision import LARGE


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
    for part in (checkpoint.decoder, checkpoint.text, checkpoint.vae):
        files = {file: load_file(file) for file in set(part.files.values())}
        found |= {f"{part.kind.title}/{n}": files[file][part.prefix + n] for n, file in part.files.items()}
    return found


def test_there_and_back(release: Path, qwen25_tokenizer: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(release, tmp_path / "source"))
    make_checkpoint.write_tokenizer(source, qwen25_tokenizer)
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


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_every_weight(release: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    one = tmp_path / "one.safetensors"
    converted(release, one, "--dtype", name)
    expected, found = contents(open_model(release)), contents(open_model(one))
    for key, tensor in found.items():
        wanted = expected[key] if key.startswith("VAE") else expected[key].to(dtype)
        assert torch.equal(tensor, wanted)


def test_eight_bits_load_as_they_are(release: Path, comfyui: Path, tmp_path: Path) -> None:
    from ovis_core.checkpoint import open_release
    from ovis_core.native.loading import load
    from ovis_core.precision import PRECISIONS

    one = tmp_path / "one.safetensors"
    converted(release, one, "--dtype", "fp8_e4m3fn")
    small = {name for name, tensor in contents(open_model(one)).items() if tensor.dtype == torch.float8_e4m3fn}
    assert small == {name for name in contents(open_model(release)) if LARGE.search(name.split("/")[1])}
    stored = load(open_model(one))
    cast = load(open_release(release), PRECISIONS["fp8_e4m3fn"])
    for a, b in zip(stored[:2], cast[:2], strict=True):
        ours, theirs = (
            dict(x.patcher.model.named_parameters()) if hasattr(x, "patcher") else dict(x.model.named_parameters())
            for x in (a, b)
        )
        assert ours.keys() == theirs.keys()
        assert all(ours[n].dtype == theirs[n].dtype and torch.equal(ours[n].float(), theirs[n].float()) for n in ours)


def test_what_is_refused_leaves_nothing(release: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    cut = Path(shutil.copytree(release, tmp_path / "cut"))
    (cut / "model-00002-of-00002.safetensors").unlink()
    for arguments, words in (
        ((release, taken), "is there already"),
        ((cut, tmp_path / "a.safetensors"), "lacks model-00002"),
        ((tmp_path / "none", tmp_path / "a.safetensors"), "none"),
        ((release, tmp_path / "a.bin"), "must end in .safetensors"),
        ((release, Path("/proc/a.safetensors")), "/proc"),
    ):
        ran = convert(*arguments)
        assert ran.returncode != 0
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr
        assert len(ran.stderr.strip().splitlines()) == 1
    assert taken.read_bytes() == b"mine"
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob("a.*"))


def test_a_disk_that_changes_bytes_is_seen(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core import conversion
    from ovis_core.checkpoint import CheckpointError
    from ovis_core.precision import DEFAULT

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
    with pytest.raises(CheckpointError, match="came back changed"):
        conversion.write_one(open_model(release), tmp_path / "one.safetensors", DEFAULT)
    assert not list(tmp_path.glob("one*"))
