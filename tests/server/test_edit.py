"""Editing in a running ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfy_prompt import PromptFailed, Result
from comfy_server import ComfyServer
from helpers.graphs import Graph, load, saved_image, saved_images, saved_latent
from helpers.pictures import picture


def upload(server: ComfyServer, folder: Path, image: Image.Image, name: str) -> str:
    file = folder / f"{name}.png"
    image.save(file)
    return server.upload(file)


def edit(info: dict[str, Any], image: str, steps: int = 2, name: str = "edit") -> Graph:
    graph = load(name, info).set("LoadImage", image=image)
    return graph.set_all("OvisU1Sampler", steps=steps, seed=7)


@pytest.fixture(scope="module")
def source(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return upload(server, tmp_path_factory.mktemp("source"), picture(256, 192), "source")


def test_dual_cfg_guider_gives_the_same_latent(server: ComfyServer, info: dict[str, Any], source: str) -> None:
    graph = edit(info, source, steps=5)
    model = graph.out("OvisU1Loader")
    positive, image_only, negative, latent = (graph.out("OvisU1EditEncode", slot) for slot in range(4))
    guider = graph.add(
        "DualCFGGuider",
        model=model,
        cond1=positive,
        cond2=image_only,
        negative=negative,
        cfg_conds=6.0,
        cfg_cond2_negative=1.5,
        style="regular",
    )
    advanced = graph.add(
        "SamplerCustomAdvanced",
        noise=[graph.add("RandomNoise", noise_seed=7), 0],
        guider=[guider, 0],
        sampler=[graph.add("KSamplerSelect", sampler_name="euler"), 0],
        sigmas=[graph.add("OvisU1Scheduler", model=model, latent=latent, steps=5, denoise=1.0), 0],
        latent_image=latent,
    )
    own = graph.save_latent(graph.out("OvisU1Sampler"), "own_edit")
    core = graph.save_latent([advanced, 0], "core_edit")
    result = server.run(graph.prompt)
    assert torch.equal(saved_latent(server, result, own), saved_latent(server, result, core))


@pytest.mark.parametrize(
    ("width", "height", "megapixels"),
    [(96, 160, 0.0), (160, 96, 0.0), (64, 64, 0.0), (4000, 3000, 0.2), (100, 800, 0.0), (4000, 3, 0.0)],
    ids=["portrait", "landscape", "small", "large", "strip", "thread"],
)
def test_restore_size_returns_the_source_size(
    server: ComfyServer, info: dict[str, Any], tmp_path: Path, width: int, height: int, megapixels: float
) -> None:
    name = upload(server, tmp_path, picture(width, height), f"{width}x{height}")
    graph = edit(info, name, steps=1).set("OvisU1EditEncode", megapixels=megapixels)
    assert saved_image(server, server.run(graph.prompt), graph).size == (width, height)


def test_megapixels_limits_the_edit(server: ComfyServer, info: dict[str, Any], tmp_path: Path) -> None:
    name = upload(server, tmp_path, picture(1024, 512), "wide")
    graph = edit(info, name, steps=1).set("OvisU1EditEncode", megapixels=0.1).set("OvisU1Decode", restore_size=False)
    width, height = saved_image(server, server.run(graph.prompt), graph).size
    assert width % 32 == height % 32 == 0
    assert 0.05 * 2**20 < width * height <= 0.1 * 2**20


def test_edit_of_an_image_with_alpha(server: ComfyServer, info: dict[str, Any], tmp_path: Path) -> None:
    """Alpha arrives in the graph as a mask, and the colours under it are still edited."""
    rgba = picture(128, 128).convert("RGBA")
    rgba.putalpha(Image.new("L", (128, 128), 0))
    names = [upload(server, tmp_path, image, f"a{i}") for i, image in enumerate((rgba, picture(128, 128)))]
    seen = []
    for name in names:
        graph = edit(info, name, steps=1)
        seen.append(saved_image(server, server.run(graph.prompt), graph).tobytes())
    assert seen[0] == seen[1]


def test_edit_of_a_grey_image(server: ComfyServer, info: dict[str, Any], tmp_path: Path) -> None:
    graph = edit(info, upload(server, tmp_path, picture(80, 64).convert("L"), "grey"), steps=1)
    assert saved_image(server, server.run(graph.prompt), graph).size == (80, 64)


def test_batch_of_images_gives_one_edit_each(server: ComfyServer, info: dict[str, Any], source: str) -> None:
    graph = edit(info, source)
    inverted = graph.add("ImageInvert", image=graph.out("LoadImage"))
    batch = graph.add("ImageBatch", image1=graph.out("LoadImage"), image2=[inverted, 0])
    graph.set("OvisU1EditEncode", image=[batch, 0])
    images = saved_images(server, server.run(graph.prompt), graph.find("SaveImage"))
    assert [image.size for image in images] == [(256, 192)] * 2
    assert images[0].tobytes() != images[1].tobytes()


@pytest.mark.parametrize("sampler", ["OvisU1Sampler", "KSampler"])
def test_error_for_one_latent_of_a_batch_of_edits(
    server: ComfyServer, info: dict[str, Any], source: str, sampler: str
) -> None:
    """The conditioning of the first image would be used for the second one."""
    graph = edit(info, source, steps=1)
    inverted = graph.add("ImageInvert", image=graph.out("LoadImage"))
    batch = graph.add("ImageBatch", image1=graph.out("LoadImage"), image2=[inverted, 0])
    graph.set("OvisU1EditEncode", image=[batch, 0])
    latent = graph.out("OvisU1EditEncode", 3)
    twice = graph.add("RepeatLatentBatch", samples=latent, amount=2)
    second = graph.add("LatentFromBatch", samples=latent, batch_index=1, length=1)
    if sampler == "KSampler":
        links = {"model": graph.out("OvisU1Loader"), "positive": graph.out("OvisU1EditEncode")}
        links["negative"] = graph.out("OvisU1EditEncode", 2)
        settings = {"seed": 1, "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        node = graph.add("KSampler", **links, **settings)
        graph.set("OvisU1Decode", samples=[node, 0]).remove("OvisU1Sampler")
    name = "latent_image" if sampler == "KSampler" else "latent"
    graph.set(sampler, **{name: [twice, 0]})
    assert len(saved_images(server, server.run(graph.prompt), graph.find("SaveImage"))) == 4
    graph.set(sampler, **{name: [second, 0]})
    with pytest.raises(
        PromptFailed,
        match=r"latent: expected a batch size that is a multiple of 2, the batch size of the conditioning, got 1",
    ):
        server.run(graph.prompt)


def test_edit_with_two_images_of_different_sizes(
    server: ComfyServer, info: dict[str, Any], source: str, tmp_path: Path
) -> None:
    """The workflow's API form is the same in every ComfyUI; the first image decides the size."""
    graph = load("edit_two", info).set("OvisU1Sampler", steps=2, seed=7)
    first, second = graph.find_all("LoadImage")
    graph.set_node(first, image=source).set_node(second, image=upload(server, tmp_path, picture(70, 300, 3), "tall"))
    assert graph.prompt[graph.find("OvisU1EditEncode")]["inputs"]["images.image_2"] == [second, 0]
    one = graph.copy()
    del one.prompt[one.find("OvisU1EditEncode")]["inputs"]["images.image_2"]
    plain = edit(info, source).set(
        "OvisU1EditEncode", prompt=one.prompt[one.find("OvisU1EditEncode")]["inputs"]["prompt"]
    )
    images = [saved_image(server, server.run(g.prompt), g) for g in (graph, one, plain)]
    assert [image.size for image in images] == [(256, 192)] * 3
    assert images[0].tobytes() != images[1].tobytes()
    assert images[1].tobytes() == images[2].tobytes()


def test_batch_with_further_images(server: ComfyServer, info: dict[str, Any], source: str, tmp_path: Path) -> None:
    """A further image is in every edit, or there is one for each; any other number is refused."""
    graph = load("edit_two", info).set("OvisU1Sampler", steps=1, seed=7)
    first, second = graph.find_all("LoadImage")
    graph.set_node(first, image=source).set_node(second, image=upload(server, tmp_path, picture(96, 64, 3), "other"))
    two, three = (graph.add("RepeatImageBatch", image=[first, 0], amount=amount) for amount in (2, 3))
    sizes = []
    for further in ([second, 0], [two, 0]):
        batch = graph.copy().set("OvisU1EditEncode", image=[two, 0], **{"images.image_2": further})
        sizes.append(len(saved_images(server, server.run(batch.prompt), batch.find("SaveImage"))))
    assert sizes == [2, 2]
    for image, expected in (
        ([first, 0], r"images\.image_2: expected one image, got 3; choose one of them with ImageFromBatch."),
        (
            [two, 0],
            r"images\.image_2: expected 1 image or 2 \(one for each image in image\), got 3; choose",
        ),
    ):
        wrong = graph.copy().set("OvisU1EditEncode", image=image, **{"images.image_2": [three, 0]})
        with pytest.raises(PromptFailed, match=expected):
            server.run(wrong.prompt)


def test_masked_edit_keeps_the_image_outside_the_mask(
    server: ComfyServer, info: dict[str, Any], tmp_path: Path
) -> None:
    """Only the left quarter may change; its edge is that of the latent's 8 pixels."""
    rgba = picture(256, 192).convert("RGBA")
    alpha = np.full((192, 256), 255, np.uint8)
    alpha[:, :64] = 0  # LoadImage's mask is the transparent part of the image
    rgba.putalpha(Image.fromarray(alpha))
    graph = edit(info, upload(server, tmp_path, rgba, "masked"), steps=4, name="edit_masked")
    own = graph.out("OvisU1EditEncode", 3)
    trip = graph.add("VAEDecode", samples=own, vae=graph.out("OvisU1Loader", 2))
    around = graph.add("SaveImage", images=[trip, 0], filename_prefix="tests/around")
    before, after = (
        graph.save_latent(link, name) for link, name in ((own, "before"), (graph.out("OvisU1Sampler"), "after"))
    )
    result = server.run(graph.prompt)
    change = (saved_latent(server, result, after) - saved_latent(server, result, before)).abs()[0].amax(dim=0)
    assert change[:, 8:].max() < 1e-4 * change[:, :8].max()
    assert (change[:, :8] > 0.1).float().mean() > 0.9

    edited_node = next(i for i in graph.find_all("SaveImage") if i != around)
    (edited,), (kept,) = (saved_images(server, result, node) for node in (edited_node, around))
    difference = np.abs(np.asarray(edited, dtype=int) - np.asarray(kept, dtype=int)).max(axis=-1)
    assert difference[:, 64:].max() == 0
    assert difference[:, :64].mean() > 20.0


def shown_on(result: Result, node: str) -> list[str]:
    """The texts that the run sent to the page for a node."""
    return [e["data"]["text"] for e in result.events if e["type"] == "progress_text" and e["data"]["node"] == node]


def test_warnings_for_an_empty_mask_and_an_empty_prompt(
    server: ComfyServer, info: dict[str, Any], source: str, tmp_path: Path
) -> None:
    """They are shown on the node, and disappear when the next run of this page finds nothing wrong."""
    graph = edit(info, source, name="edit_masked").set("OvisU1EditEncode", prompt=" ")
    sampler, encode = graph.find("OvisU1Sampler"), graph.find("OvisU1EditEncode")
    result = server.run(graph.prompt, page="first")
    assert shown_on(result, sampler) == [
        "The mask is empty, so nothing changes; paint a mask, or remove the node that sets it."
    ]
    assert shown_on(result, encode) == ["The prompt is empty; write in it what to change."]
    rgba = picture(256, 192).convert("RGBA")
    rgba.putalpha(0)
    graph.set("LoadImage", image=upload(server, tmp_path, rgba, "transparent"))
    for page, prompt, expected in (("second", "red", []), ("first", "green", [" "]), ("first", "blue", [])):
        result = server.run(graph.set("OvisU1EditEncode", prompt=prompt).prompt, page=page)
        assert shown_on(result, sampler) == shown_on(result, encode) == expected
    # Core's sampler warns too.
    graph.set("LoadImage", image=source)
    sampling = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"positive": graph.out("OvisU1EditEncode"), "negative": graph.out("OvisU1EditEncode", 2)}
    links |= {"model": graph.out("OvisU1Loader"), "latent_image": graph.out("SetLatentNoiseMask")}
    core = graph.add("KSampler", **sampling, **links)
    graph.save_latent([core, 0], "masked")
    assert len(shown_on(server.run(graph.prompt), core)) == 1


def test_second_masked_edit_keeps_the_first_edit(server: ComfyServer, info: dict[str, Any], tmp_path: Path) -> None:
    """The area outside a mask is taken from the source only if it still equals the source."""
    graph = edit(info, upload(server, tmp_path, picture(192, 64), "thirds"), steps=3, name="edit_masked")
    encoded, vae = graph.out("OvisU1EditEncode", 3), graph.out("OvisU1Loader", 2)
    inputs = graph.prompt[graph.find("OvisU1Sampler")]["inputs"]

    def masked(samples: list[Any], x: int) -> list[Any]:
        blank = graph.add("SolidMask", value=0.0, width=192, height=64)
        third = graph.add("SolidMask", value=1.0, width=64, height=64)
        mask = graph.add("MaskComposite", destination=[blank, 0], source=[third, 0], x=x, y=0, operation="add")
        mask = graph.add("SetLatentNoiseMask", samples=samples, mask=[mask, 0])
        return [graph.add("OvisU1Sampler", **{**inputs, "latent": [mask, 0]}), 0]

    def image(samples: list[Any], node: str) -> str:
        decoded = graph.add(node, samples=samples, vae=vae)
        return graph.add("SaveImage", images=[decoded, 0], filename_prefix="tests/thirds")

    first = masked(encoded, 0)
    second = masked(first, 128)
    twice = [graph.add("RepeatLatentBatch", samples=first, amount=2), 0]
    flipped = [graph.add("LatentFlip", samples=first, flip_method="y-axis: horizontally"), 0]
    source, one, both, plain = (
        image(samples, node)
        for samples, node in (
            (encoded, "VAEDecode"),
            (twice, "OvisU1Decode"),
            (second, "OvisU1Decode"),
            (second, "VAEDecode"),
        )
    )
    turned, core_turned = image(flipped, "OvisU1Decode"), image(flipped, "VAEDecode")
    result = server.run(graph.prompt)
    pixels = {
        node: [np.asarray(picture, dtype=int) for picture in saved_images(server, result, node)]
        for node in (source, one, both, plain, turned, core_turned)
    }
    for repeated in pixels[one]:
        assert np.abs(repeated - pixels[source][0])[:, 64:].max() == 0
        assert np.abs(repeated - pixels[source][0])[:, :64].mean() > 20
    # After the second mask the first edit is still there; the source does not replace it.
    assert np.array_equal(pixels[both][0], pixels[plain][0])
    assert np.array_equal(pixels[turned][0], pixels[core_turned][0])


def test_denoise_keeps_some_of_the_source(server: ComfyServer, info: dict[str, Any], source: str) -> None:
    graph = edit(info, source, steps=4)
    inputs = graph.prompt[graph.find("OvisU1Sampler")]["inputs"]
    nodes = [graph.save_latent(graph.out("OvisU1EditEncode", 3), "source")]
    for denoise in (0.1, 0.9):
        sampler = graph.add("OvisU1Sampler", **{**inputs, "denoise": denoise})
        nodes.append(graph.save_latent([sampler, 0], f"denoise{denoise}"))
    result = server.run(graph.prompt)
    start, near, far = (saved_latent(server, result, node) for node in nodes)
    assert 0 < (near - start).abs().mean() < (far - start).abs().mean()


def test_edit_after_edit(server: ComfyServer, info: dict[str, Any], source: str) -> None:
    """A new second instruction leaves the first edit in ComfyUI's cache."""
    graph = edit(info, source, name="edit_chain")
    first = server.run(graph.prompt)
    assert saved_image(server, first, graph).size == (256, 192)
    encodes, samplers = graph.find_all("OvisU1EditEncode"), graph.find_all("OvisU1Sampler")
    assert len(encodes) == len(samplers) == 2
    second = server.run(graph.set_node(encodes[1], prompt="Add heavy rain.").prompt)
    assert encodes[1] in second.executed_nodes
    assert not {encodes[0], samplers[0], graph.find("OvisU1Loader")} & set(second.executed_nodes)


def test_core_reference_latent_and_timestep_range(server: ComfyServer, info: dict[str, Any], source: str) -> None:
    """The reference is ComfyUI's own `reference_latents`; a second one takes part as well."""
    graph = edit(info, source)
    inputs = graph.prompt[graph.find("OvisU1Sampler")]["inputs"]
    latent = graph.out("OvisU1EditEncode", 3)
    flipped = graph.add("LatentFlip", samples=latent, flip_method="y-axis: horizontally")
    more = graph.add("ReferenceLatent", conditioning=inputs["positive"], latent=[flipped, 0])
    late = graph.add("ConditioningSetTimestepRange", conditioning=inputs["positive"], start=0.5, end=1.0)
    nodes = []
    for i, positive in enumerate((inputs["positive"], [more, 0])):
        sampler = graph.add("OvisU1Sampler", **{**inputs, "positive": positive})
        nodes.append(graph.save_latent([sampler, 0], f"reference{i}"))
    early = graph.add("ConditioningSetTimestepRange", conditioning=inputs["negative"], start=0.0, end=0.5)
    combined = graph.add("ConditioningCombine", conditioning_1=[late, 0], conditioning_2=[early, 0])
    sampler = graph.add("OvisU1Sampler", **{**inputs, "positive": [combined, 0]})
    nodes.append(graph.save_latent([sampler, 0], "range"))
    result = server.run(graph.prompt)
    one, two, ranged = (saved_latent(server, result, node) for node in nodes)
    for other in (two, ranged):
        assert other.isfinite().all()
        assert (one - other).abs().max() > 1e-3


def test_error_for_restore_size_without_a_source(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = load("text_to_image", info).set("OvisU1Decode", restore_size=True).set("OvisU1Sampler", steps=1)
    graph.set("OvisU1TextEncode", width=64, height=64).set("EmptyLatentImage", width=64, height=64)
    with pytest.raises(PromptFailed, match="samples: expected the latent of an edit, because restore_size is on"):
        server.run(graph.prompt)
