"""ComfyUI's nodes and flags for caches, compilation, attention and previews."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from safetensors.torch import save_file

from comfy_server import ComfyServer
from helpers.device import DEVICE_ARGS

from .table import HEIGHT, WIDTH, Lab, row, same

AREA = "speed"
SIDE = 512  # the longer one of a preview, as ComfyUI sends it


@row(AREA, "TorchCompileModel", "the compiled model gives the same image to rounding")
def compiled(lab: Lab) -> None:
    bench = lab.bench()
    model = bench.node("TorchCompileModel", model=bench.model, backend="inductor")
    same(bench.sampled(bench.ksampler(model=model)), lab.plain())


@contextmanager
def started(lab: Lab, *flags: str) -> Iterator[Lab]:
    """Another server with these flags, on the same folders."""
    with ComfyServer(lab.server.comfyui, lab.server.base, [*DEVICE_ARGS, *flags]) as server:
        yield Lab(server, server.object_info(), lab.release)


def flag(name: str) -> None:
    def run(lab: Lab) -> None:
        with started(lab, name) as own:
            same(own.bench().sampled(), lab.plain(), 1e-4)

    row(AREA, name, "the same image to rounding")(run)


for _flag in (
    "--fast",
    "--use-pytorch-cross-attention",
    "--use-split-cross-attention",
    "--use-quad-cross-attention",
):
    flag(_flag)


def preview(lab: Lab, method: str) -> None:
    with started(lab, "--preview-method", method) as own:
        bench = own.bench()
        bench.save_latent(bench.ksampler(steps=4), "features")
        images = [event["data"]["image"] for event in bench.execute().events if event["type"] == "preview"]
        assert "could not find models/vae_approx" not in own.server.log_text()
    assert len(images) >= 3
    sizes = {Image.open(io.BytesIO(image)).size for image in images}
    assert sizes == {(SIDE, int(SIDE * HEIGHT / WIDTH))}
    assert len({bytes(image) for image in images}) > 1
    lab.cache[f"preview {method}"] = images[-1]


row("previews", "latent2rgb", "a preview at each step, of the image's shape")(lambda lab: preview(lab, "latent2rgb"))


@row("previews", "TAESD", "the same with a (random) TAESD; its images differ from those of latent2rgb")
def taesd(lab: Lab) -> None:
    file = lab.server.base / "models" / "vae_approx" / "taesdxl_decoder.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_taesd(), file)
    preview(lab, "taesd")
    if "preview latent2rgb" in lab.cache:
        assert lab.cache["preview taesd"] != lab.cache["preview latent2rgb"]


def random_taesd() -> dict[str, torch.Tensor]:
    """Weights of the small decoder that ComfyUI previews with."""
    from comfy.taesd.taesd import Decoder

    torch.manual_seed(0)
    decoder = Decoder(4)
    for weight in decoder.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=(0.6 / weight[0].numel()) ** 0.5)
        else:
            torch.nn.init.zeros_(weight)
    return {name: tensor.contiguous() for name, tensor in decoder.state_dict().items()}
