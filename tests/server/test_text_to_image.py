"""Text to image in a running ComfyUI, over its HTTP and WebSocket API."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from comfy_prompt import PromptFailed, PromptRejected
from comfy_server import ComfyServer
from helpers.graphs import Graph, load, saved_image, saved_latent, text_to_image, workflows
from helpers.pictures import picture
from ovis_core.weights import built_in
from workflow_api import read_workflow

NODES = {
    "OvisU1ModelMerge",
    "OvisU1Decode",
    "OvisU1Download",
    "OvisU1EditEncode",
    "OvisU1Guider",
    "OvisU1Judge",
    "OvisU1LoadParts",
    "OvisU1Loader",
    "OvisU1Refine",
    "OvisU1Sampler",
    "OvisU1Scheduler",
    "OvisU1TextEncode",
    "OvisU1Understand",
}


def test_warning_for_an_empty_prompt_in_a_list(server: ComfyServer, info: dict[str, Any]) -> None:
    """The prompts after it do not clear it, and it is logged once."""
    folder = server.base / "input" / "some_empty"
    folder.mkdir()
    for name, caption in (("a", "a cat"), ("b", ""), ("c", " "), ("d", "a dog")):
        picture(32, 32).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    graph = text_to_image(info, steps=1)
    texts = graph.add("LoadImageTextDataSetFromFolder", folder=folder.name)
    graph.set("OvisU1TextEncode", prompt=[texts, 1])
    before = server.log_text().count("The prompt is empty")
    events = server.run(graph.prompt).events
    node = graph.find("OvisU1TextEncode")
    shown = [e["data"]["text"] for e in events if e["type"] == "progress_text" and e["data"]["node"] == node]
    assert shown == ["The prompt is empty; describe the image in it."]
    assert server.log_text().count("The prompt is empty") == before + 1


def core_sampling(graph: Graph, sigmas: list[Any], guider: list[Any]) -> list[Any]:
    """SamplerCustomAdvanced in place of OvisU1Sampler, with the same seed and latent."""
    inputs = graph.prompt[graph.find("OvisU1Sampler")]["inputs"]
    noise = graph.add("RandomNoise", noise_seed=inputs["seed"])
    euler = graph.add("KSamplerSelect", sampler_name="euler")
    advanced = graph.add(
        "SamplerCustomAdvanced",
        noise=[noise, 0],
        guider=guider,
        sampler=[euler, 0],
        sigmas=sigmas,
        latent_image=inputs["latent"],
    )
    return [advanced, 0]


def test_pack_loads_without_errors(server: ComfyServer, info: dict[str, Any]) -> None:
    assert set(info) >= NODES
    starting = server.log_text().split("Starting server")[0]
    assert "Import times for custom nodes" in starting
    assert "IMPORT FAILED" not in starting
    assert "Traceback" not in starting


def test_every_input_and_output_has_a_tooltip(info: dict[str, Any]) -> None:
    for name in NODES:
        node = info[name]
        assert node["display_name"].startswith("Ovis-U1 ")
        assert node["category"] == "Ovis-U1"
        assert node["description"]
        for kind in ("required", "optional"):
            for key, spec in node["input"].get(kind, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{key}"
        assert len(node["output_tooltips"]) == len(node["output"])
        assert all(node["output_tooltips"]), name
        assert len(set(node["output_name"])) == len(node["output_name"]), name


def test_workflow_matches_the_node_schemas(info: dict[str, Any]) -> None:
    """Every widget value of the saved workflow is one that its node takes."""
    for name_of_workflow in workflows(info):
        workflow = read_workflow(name_of_workflow)
        slots = {(link[1], link[2]): link[5] for link in workflow["links"]}
        for node in workflow["nodes"]:
            for slot, output in enumerate(node.get("outputs", [])):
                if node["type"] in info and output["links"]:
                    assert info[node["type"]]["output"][slot] == slots[node["id"], slot], node["type"]
        for node in load(name_of_workflow, info).prompt.values():
            inputs = info[node["class_type"]]["input"]
            specs = {**inputs.get("required", {}), **inputs.get("optional", {})}
            specs |= {f"{name}.{one}": spec for name, spec in specs.items() for one in grown(spec)}
            assert set(node["inputs"]) <= set(specs), node["class_type"]
            assert set(inputs.get("required", {})) <= set(node["inputs"]), node["class_type"]
            for name, value in node["inputs"].items():
                assert fits(specs[name], value), f"{name_of_workflow}: {node['class_type']}.{name} is {value!r}"


def grown(spec: list[Any]) -> list[str]:
    """The names of inputs that grow."""
    return spec[1]["template"].get("names", []) if spec[0] == "COMFY_AUTOGROW_V3" else []


def fits(spec: list[Any], value: Any) -> bool:
    """Whether an input takes a value; links are checked elsewhere."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    if isinstance(value, list):
        return len(value) == 2
    if choices is not None:
        return value in choices or options.get("image_upload", False) or options.get("video_upload", False)
    if kind in ("INT", "FLOAT"):
        whole = kind == "INT"
        return isinstance(value, int if whole else int | float) and options["min"] <= value <= options["max"]
    return isinstance(value, bool if kind == "BOOLEAN" else str)


def test_workflow_makes_an_image(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info)
    result = server.run(graph.prompt)
    picture = saved_image(server, result, graph)
    assert picture.size == (128, 96)
    assert len(set(picture.tobytes())) > 20
    progress = [event["data"] for event in result.events if event["type"] == "progress"]
    assert progress
    assert progress[-1]["value"] == progress[-1]["max"] == 3


def test_ksampler_gives_the_same_latent(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info, steps=30).set("OvisU1Sampler", scheduler="simple")
    ours = graph.prompt[graph.find("OvisU1Sampler")]["inputs"]
    shifted = graph.add(
        "ModelSamplingFlux", model=graph.out("OvisU1Loader"), max_shift=1.15, base_shift=0.5, width=128, height=96
    )
    core = graph.add(
        "KSampler",
        model=[shifted, 0],
        positive=ours["positive"],
        negative=ours["negative"],
        latent_image=ours["latent"],
        seed=ours["seed"],
        steps=30,
        cfg=5.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    own = graph.save_latent(graph.out("OvisU1Sampler"), "own")
    other = graph.save_latent([core, 0], "core")
    model_schedule = text_to_image(info, steps=30)
    default = model_schedule.save_latent(model_schedule.out("OvisU1Sampler"), "default")
    result = server.run(graph.prompt)
    simple = saved_latent(server, result, own)
    assert torch.equal(simple, saved_latent(server, result, other))
    # At 30 steps ComfyUI's `simple` and the model's own schedule are not the same.
    assert not torch.equal(simple, saved_latent(server, server.run(model_schedule.prompt), default))


@pytest.mark.parametrize("sampler_name", ["dpm_2", "uni_pc", "dpmpp_2m"])
def test_other_samplers_match_ksampler(server: ComfyServer, info: dict[str, Any], sampler_name: str) -> None:
    """KSampler drops a sigma for some of them."""
    graph = text_to_image(info).set("OvisU1Sampler", scheduler="simple", sampler_name=sampler_name)
    ours = graph.prompt[graph.find("OvisU1Sampler")]["inputs"]
    shifted = graph.add(
        "ModelSamplingFlux", model=graph.out("OvisU1Loader"), max_shift=1.15, base_shift=0.5, width=128, height=96
    )
    names = ("positive", "negative", "seed", "steps", "sampler_name", "scheduler", "denoise")
    core = graph.add(
        "KSampler", model=[shifted, 0], latent_image=ours["latent"], cfg=5.0, **{name: ours[name] for name in names}
    )
    own, other = (
        graph.save_latent(link, name) for link, name in ((graph.out("OvisU1Sampler"), "own"), ([core, 0], "core"))
    )
    result = server.run(graph.prompt)
    assert torch.equal(saved_latent(server, result, own), saved_latent(server, result, other))


def test_model_sampling_flux_of_the_user_takes_precedence(server: ComfyServer, info: dict[str, Any]) -> None:
    def run(scheduler: str, patched: bool) -> Tensor:
        graph = text_to_image(info).set("OvisU1Sampler", scheduler=scheduler)
        if patched:
            shifted = graph.add(
                "ModelSamplingFlux",
                model=graph.out("OvisU1Loader"),
                max_shift=3.0,
                base_shift=2.0,
                width=128,
                height=96,
            )
            graph.set("OvisU1Sampler", model=[shifted, 0])
        node = graph.save_latent(graph.out("OvisU1Sampler"), "shift")
        return saved_latent(server, server.run(graph.prompt), node)

    assert not torch.equal(run("simple", True), run("simple", False))
    assert torch.equal(run("ovis_u1", True), run("ovis_u1", False))


def test_scheduler_guider_and_sampler_nodes_give_the_same_latent(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info, steps=7)
    model = graph.out("OvisU1Loader")
    conditions = {name: graph.out("OvisU1TextEncode", i) for i, name in enumerate(("positive", "negative"))}
    sigmas = graph.add("OvisU1Scheduler", model=model, latent=graph.out("EmptyLatentImage"), steps=7, denoise=1.0)
    guider = graph.add("OvisU1Guider", model=model, **conditions, txt_cfg=5.0)
    own = graph.save_latent(graph.out("OvisU1Sampler"), "one")
    three = graph.save_latent(core_sampling(graph, [sigmas, 0], [guider, 0]), "three")
    result = server.run(graph.prompt)
    assert torch.equal(saved_latent(server, result, own), saved_latent(server, result, three))


def test_refined_conditioning_samples_the_same(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info)
    plain = graph.save_latent(graph.out("OvisU1Sampler"), "plain")
    expected = saved_latent(server, server.run(graph.prompt), plain)
    for name, slot in (("positive", 0), ("negative", 1)):
        link = graph.out("OvisU1TextEncode", slot)
        for _ in range(2):
            link = [graph.add("OvisU1Refine", model=graph.out("OvisU1Loader"), conditioning=link), 0]
        graph.set("OvisU1Sampler", **{name: link})
    assert torch.equal(saved_latent(server, server.run(graph.prompt), plain), expected)


def test_text_to_image_with_core_nodes(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info)
    model, clip, vae = (graph.out("OvisU1Loader", slot) for slot in range(3))
    text = [graph.add("CLIPTextEncode", clip=clip, text=text) for text in ("a cute cat", "")]
    core = graph.add(
        "KSampler",
        model=model,
        positive=[text[0], 0],
        negative=[text[1], 0],
        latent_image=graph.out("EmptyLatentImage"),
        seed=1,
        steps=2,
        cfg=5.0,
        sampler_name="dpmpp_2m",
        scheduler="beta",
        denoise=1.0,
    )
    decoded = graph.add("VAEDecode", samples=[core, 0], vae=vae)
    graph.set("SaveImage", images=[decoded, 0]).remove("OvisU1Decode", "OvisU1Sampler", "OvisU1TextEncode")
    assert saved_image(server, server.run(graph.prompt), graph).size == (128, 96)


def test_the_same_graph_gives_the_same_image(server: ComfyServer, info: dict[str, Any]) -> None:
    graph, other = text_to_image(info, seed=11), text_to_image(info, seed=12)
    first = saved_image(server, server.run(graph.prompt), graph).tobytes()
    between = saved_image(server, server.run(other.prompt), other).tobytes()
    again = server.run(graph.prompt)
    assert graph.find("OvisU1Sampler") in again.executed_nodes
    assert saved_image(server, again, graph).tobytes() == first
    assert between != first


def test_a_new_seed_reruns_only_sampling_and_decoding(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info, seed=21)
    server.run(graph.prompt)
    result = server.run(graph.set("OvisU1Sampler", seed=22).prompt)
    assert set(result.executed_nodes) == {graph.find(name) for name in ("OvisU1Sampler", "OvisU1Decode", "SaveImage")}


def test_interrupt_stops_within_a_step_and_the_next_prompt_works(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info, width=512, height=512, steps=200)
    asked: list[int] = []

    def on_progress(value: int, maximum: int) -> None:
        if maximum == 200 and value >= 3 and not asked:
            asked.append(value)
            server.interrupt()

    result = server.run(graph.prompt, on_progress=on_progress, check=False)
    steps = [e["data"]["value"] for e in result.events if e["type"] == "progress" and e["data"]["max"] == 200]
    assert any(event["type"] == "execution_interrupted" for event in result.events)
    assert asked[0] <= max(steps) <= asked[0] + 1
    assert server.run(text_to_image(info, seed=31).prompt).error is None


def test_batch_equals_its_single_images(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info).set("EmptyLatentImage", batch_size=4)
    whole = graph.save_latent(graph.out("OvisU1Sampler"), "batch")
    inputs = graph.prompt[graph.find("OvisU1Sampler")]["inputs"]
    empty, singles = graph.out("EmptyLatentImage"), []
    sampler = dict(inputs)
    for i in range(4):
        one = graph.add("LatentFromBatch", samples=empty, batch_index=i, length=1)
        sampled = graph.add("OvisU1Sampler", **{**sampler, "latent": [one, 0]})
        singles.append(graph.save_latent([sampled, 0], f"single{i}"))
    result = server.run(graph.prompt)
    batch = saved_latent(server, result, whole)
    assert batch.shape[0] == 4
    for i, node in enumerate(singles):
        assert torch.allclose(
            batch[i : i + 1], saved_latent(server, result, node), rtol=0, atol=1e-4 * float(batch.abs().max())
        )
    assert not torch.allclose(batch[0], batch[1], atol=0.1)


@pytest.mark.parametrize(("width", "height"), [(512, 1024), (1040, 784)])
def test_sizes(server: ComfyServer, info: dict[str, Any], width: int, height: int) -> None:
    graph = text_to_image(info, width, height, steps=1)
    assert saved_image(server, server.run(graph.prompt), graph).size == (width, height)


def test_denoise_keeps_some_of_the_image(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info, steps=4)
    start = graph.out("OvisU1Sampler")
    near, far = (
        graph.add(
            "OvisU1Sampler",
            **{**graph.prompt[start[0]]["inputs"], "latent": start, "seed": 99, "denoise": denoise},
        )
        for denoise in (0.2, 0.9)
    )
    nodes = [graph.save_latent([node, 0], f"denoise{i}") for i, node in enumerate((start[0], near, far))]
    result = server.run(graph.prompt)
    source, close_by, far_off = (saved_latent(server, result, node) for node in nodes)
    assert 0 < (close_by - source).abs().mean() < (far_off - source).abs().mean()


def test_errors_for_wrong_sizes_and_model_names(server: ComfyServer, info: dict[str, Any]) -> None:
    with pytest.raises(PromptFailed, match="width: expected a multiple of 16 pixels, got 1000; use 992 or 1008"):
        server.run(text_to_image(info, width=1000).prompt)
    words = "width and height: expected multiples of 16 pixels, got 1000 and 780; use 992 and 768"
    with pytest.raises(PromptFailed, match=words):
        server.run(text_to_image(info, width=1000, height=780).prompt)
    graph = text_to_image(info).set("EmptyLatentImage", width=1000, height=1016)
    with pytest.raises(
        PromptFailed, match=r"latent: expected sides .* 16 pixels, got 1000 x 1016 pixels; use 992 x 1008"
    ):
        server.run(graph.prompt)
    graph = text_to_image(info).set("OvisU1Loader", model_name="../../tiny")
    with pytest.raises(PromptRejected, match=r"model_name: '../../tiny' was not found; choose one of .*tiny"):
        server.run(graph.prompt)


def test_listed_folders(info: dict[str, Any]) -> None:
    """`models/ovis_u1`, the folders in extra_model_paths.yaml, and complete releases in the folders of other packs."""
    spec = info["OvisU1Loader"]["input"]["required"]["model_name"]
    options = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
    assert set(options) - {built_in.NAME} == {"tiny", "elsewhere", "half", "ovis/whole", "ovis/AIDC-AI/inside"}


def test_error_for_a_broken_model(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info).set("OvisU1Loader", model_name="half")
    with pytest.raises(PromptFailed, match=r"half lacks model-00002-of-00002\.safetensors") as failed:
        server.run(graph.prompt)
    assert (
        failed.value.kind == "CheckpointError"
    )  # the page shows it before the message, and a long path would hide the message
