"""Understanding in a running ComfyUI, over its HTTP and WebSocket API."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfy_prompt import PromptFailed, PromptRejected, Result, shown
from comfy_server import ComfyServer
from helpers.graphs import OLD, Graph, load, saved_image, saved_images
from helpers.paths import comfyui_path, shows_text_files
from helpers.pictures import picture
from helpers.videos import write_video
from ovis_core.sizes import understanding_size
from ovis_core.text import prompts
from ovis_core.text.tokenizer import Tokenizer
from workflow_api import to_api


@pytest.fixture(scope="module")
def photo(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("photo") / "understand.png"
    picture(256, 192).save(file)
    return server.upload(file)


def understand(info: dict[str, Any], photo: str, **inputs: Any) -> Graph:
    """The workflow `understand` on the small model."""
    graph = load("understand", info).set("LoadImage", image=photo)
    return graph.set("OvisU1Understand", **{"max_new_tokens": 24, **inputs})


def about(info: dict[str, Any], width: int, height: int, count: int = 1, slot: str = "image", **inputs: Any) -> Graph:
    """A question about `count` images of one colour."""
    graph = load("understand", info)
    colour = graph.add("EmptyImage", width=width, height=height, batch_size=count, color=0x4080C0)
    graph.set("OvisU1Understand", max_new_tokens=4, **{"image": [colour, 0], **inputs})
    node = graph.prompt[graph.find("OvisU1Understand")]["inputs"]
    if slot != "image":
        node[slot] = node.pop("image")
    return graph.remove("LoadImage")


def text(result: Result, graph: Graph) -> str:
    """The answer that the one OvisU1Understand gave."""
    return result.outputs[graph.find("OvisU1Understand")]["text"][0]


def test_answer_matches_the_authors_code(
    server: ComfyServer, info: dict[str, Any], photo: str, golden: dict[str, Any]
) -> None:
    graph = understand(info, photo, prompt="What is it?")
    result = server.run(graph.prompt)
    expected = golden["generate"]["single"]["text"]
    assert text(result, graph) == expected
    assert result.outputs[graph.find("PreviewAny")]["text"][0] == expected
    assert "tokens/s" in server.log_text()


def test_warning_for_an_empty_question_stays_below_the_answer(
    server: ComfyServer, info: dict[str, Any], photo: str
) -> None:
    graph = understand(info, photo, prompt="\n")
    answer, warning = text(server.run(graph.prompt), graph).rsplit("\n\n", 1)
    assert answer
    assert warning == "The prompt is empty; write a question or an instruction in it."


def test_answer_is_also_a_text_file_for_app_mode(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    graph = understand(info, photo, prompt="A file?")
    output = server.run(graph.prompt).outputs[graph.find("OvisU1Understand")]
    if shows_text_files():
        (entry,) = output["files"]
        assert server.image(entry).decode() == output["text"][0]
    else:
        assert "files" not in output


def test_text_of_a_cached_node_is_sent_when_only_a_part_runs(
    server: ComfyServer, info: dict[str, Any], photo: str
) -> None:
    """The page can run one output node; the answer on its way there stays a result of the run."""
    if "has_intermediate_output" not in info["OvisU1Understand"]:
        pytest.skip("this ComfyUI sends only the results of the nodes that it runs")
    graph = understand(info, photo, prompt="Which part?")
    judge = graph.add(
        "OvisU1Judge",
        clip=graph.out("OvisU1Loader", 1),
        images=graph.out("LoadImage"),
        question="Is it so?",
        prompt="",
    )
    ranking = graph.add("PreviewAny", source=[judge, 2])
    first = server.run(graph.prompt).outputs
    answered = server.log_text().count("Ovis-U1: prefilled ")
    body = {"prompt": graph.prompt, "partial_execution_targets": [graph.find_all("PreviewAny")[0], ranking]}
    again = finished(server, body)
    assert server.log_text().count("Ovis-U1: prefilled ") == answered
    for node in (graph.find("OvisU1Understand"), judge):
        assert again[node]["text"] == first[node]["text"]


def finished(server: ComfyServer, body: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a prompt that is sent as it is."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/prompt", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        prompt_id = json.load(answer)["prompt_id"]
    for _ in range(600):
        if entry := server.history(prompt_id):
            return entry["outputs"]
        time.sleep(0.1)
    raise AssertionError("the prompt did not end within 60 s")


def test_text_is_sent_while_it_is_generated(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    graph = understand(info, photo, prompt="Tell a story.", max_new_tokens=300, sampling=True, temperature=1.5, top_k=0)
    steps: list[tuple[int, int]] = []
    result = server.run(graph.prompt, on_progress=lambda *step: steps.append(step))
    node = graph.find("OvisU1Understand")
    shown = [e["data"]["text"] for e in result.events if e["type"] == "progress_text" and e["data"]["node"] == node]
    assert len(shown) > 3
    assert shown[-1] == text(result, graph).rstrip("\ufffd").strip()
    for earlier, later in itertools.pairwise(shown):
        assert later.startswith(earlier)
        assert len(later) > len(earlier) or later == shown[-1]
    counted = [value for value, maximum in steps if maximum == 300]
    assert counted == sorted(counted)
    assert counted[-1] == 300
    assert len(set(counted)) > 3


def texts_of_a_bystander(server: ComfyServer, work: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result of `work`, and the texts that another page received meanwhile, which queued nothing."""

    async def listen() -> tuple[Any, list[str]]:
        url = f"{server.url}/ws?clientId=bystander"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as messages:
            await messages.receive()  # it is connected
            answer = await asyncio.to_thread(work)
            # Messages to a page keep their order, so no message of the prompt can come after this one.
            await asyncio.to_thread(
                server.queue, {"1": {"class_type": "PreviewAny", "inputs": {"source": "end"}}}, "bystander"
            )
            events: list[dict[str, Any]] = []
            while not any(event["type"] == "execution_success" for event in events):
                message = await messages.receive(timeout=60)
                events += shown(message.data) if message.type == aiohttp.WSMsgType.BINARY else [message.json()]
            return answer, [event["data"]["text"] for event in events if event["type"] == "progress_text"]

    return asyncio.run(listen())


def test_text_is_sent_only_to_the_page_that_queued_the_prompt(
    server: ComfyServer, info: dict[str, Any], photo: str
) -> None:
    graph = understand(info, photo, prompt="Whose is it?", max_new_tokens=60)
    result, seen = texts_of_a_bystander(server, lambda: server.run(graph.prompt))
    own = [event["data"]["text"] for event in result.events if event["type"] == "progress_text"]
    assert own[-1] == text(result, graph).rstrip("\ufffd").strip()
    assert seen == []


def test_text_of_a_prompt_without_a_client_is_not_sent(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    graph = understand(info, photo, prompt="Nobody's?", max_new_tokens=60)

    def work() -> dict[str, Any]:
        prompt = server.queue(graph.prompt)
        while server.waiting():
            time.sleep(0.1)
        return server.history(prompt)

    entry, seen = texts_of_a_bystander(server, work)
    assert entry["outputs"][graph.find("OvisU1Understand")]["text"][0]
    assert seen == []


def test_repetition_penalty_acts_without_sampling(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    def answer(**inputs: Any) -> str:
        graph = understand(info, photo, **inputs)
        return text(server.run(graph.prompt), graph)

    plain, penalized = answer(), answer(repetition_penalty=1.8)
    assert plain != penalized
    assert answer(repetition_penalty=1.8, sampling=True, temperature=0.0) == penalized
    # Settings of sampling have no effect without sampling.
    assert answer(temperature=1.5, top_p=0.1, top_k=3, min_p=0.5, seed=9) == plain


def test_prompts_are_dynamic_but_templates_with_a_prompt_are_not(info: dict[str, Any]) -> None:
    texts = {
        (node[len("OvisU1") :], name): spec[1].get("dynamicPrompts", False)
        for node, said in info.items()
        if node.startswith("OvisU1")
        for kind in ("required", "optional")
        for name, spec in said["input"].get(kind, {}).items()
        if spec[0] == "STRING"
    }
    assert texts == {
        ("TextEncode", "prompt"): True,
        ("TextEncode", "negative_prompt"): True,
        ("EditEncode", "prompt"): True,
        ("EditEncode", "negative_prompt"): True,
        ("Understand", "prompt"): True,
        ("Understand", "system_prompt"): False,
        ("Judge", "question"): False,
        ("Judge", "prompt"): True,
        ("Improve", "prompt"): True,
        ("Improve", "judge_question"): False,
        ("Improve", "question"): False,
        ("Improve", "instruction"): False,
        ("Download", "repository"): False,
        ("Download", "revision"): False,
    }


def test_interrupt_during_generation_and_the_next_prompt_works(
    server: ComfyServer, info: dict[str, Any], photo: str
) -> None:
    graph = understand(info, photo, max_new_tokens=30000)
    asked: list[int] = []

    def on_progress(value: int, maximum: int) -> None:
        if maximum == 30000 and value > 5 and not asked:
            asked.append(value)
            server.interrupt()

    result = server.run(graph.prompt, on_progress=on_progress, check=False)
    assert result.interrupted
    assert asked
    node = graph.find("OvisU1Understand")
    last = max(e["data"]["value"] for e in result.events if e["type"] == "progress" and e["data"]["node"] == node)
    assert last < 30000
    assert server.run(understand(info, photo, prompt="And now?").prompt).error is None


def test_same_seed_same_text(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    def drawn(seed: int, temperature: float = 1.5) -> str:
        inputs = {"sampling": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "seed": seed}
        # Another prompt in between, so that the answer does not come from the cache.
        server.run(understand(info, photo, prompt="Something else").prompt)
        graph = understand(info, photo, **inputs)
        result = server.run(graph.prompt)
        assert graph.find("OvisU1Understand") in result.executed_nodes
        return text(result, graph)

    assert drawn(1) == drawn(1) != drawn(2)
    plain = understand(info, photo)
    assert drawn(3, temperature=0.0) == text(server.run(plain.prompt), plain)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_several_images(server: ComfyServer, info: dict[str, Any], count: int) -> None:
    graph = about(info, 64, 48, count)
    assert text(server.run(graph.prompt), graph)
    # 14 x 19 groups of patches each, between begin and end; several images are numbered, in words.
    numbered = positions_read(server) - count * (266 + 2) - read_without_pictures(info)
    assert numbered == 0 if count == 1 else 4 * count <= numbered <= 6 * count


@pytest.mark.parametrize(("width", "height"), [(2, 300), (300, 2), (1, 1), (6000, 4000)])
def test_odd_sizes(server: ComfyServer, info: dict[str, Any], width: int, height: int) -> None:
    graph = about(info, width, height)
    assert text(server.run(graph.prompt), graph)


@pytest.mark.parametrize(("count", "most", "frames"), [(16, 16, 16), (40, 8, 8), (1, 8, 1)])
def test_video(server: ComfyServer, info: dict[str, Any], count: int, most: int, frames: int) -> None:
    graph = about(info, 112, 84, count, slot="video", max_frames=most)
    assert text(server.run(graph.prompt), graph)
    # 28 x 38 patches a frame, begin and end, and a prompt that does not change.
    assert positions_read(server) == frames * 266 + 2 + read_without_pictures(info)


@pytest.fixture(scope="module")
def clip_file(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A video of the frames of the golden "video"."""
    frames = [picture(112, 84, k) for k in range(3)]
    return server.upload(write_video(tmp_path_factory.mktemp("clip") / "golden.mkv", frames))


def test_a_video_matches_the_authors_code(
    server: ComfyServer, info: dict[str, Any], clip_file: str, golden: dict[str, Any]
) -> None:
    graph = load("video", info).set("LoadVideo", file=clip_file)
    graph.set("OvisU1Understand", prompt="Describe the video.", max_new_tokens=24)
    expected = golden["generate"]["video"]["text"]
    assert text(server.run(graph.prompt), graph) == expected
    loaded = graph.out("LoadVideo")
    frames = [graph.add("GetVideoComponents", video=loaded), 0]
    assert text(server.run(graph.set("OvisU1Understand", video=frames).prompt), graph) == expected
    made = graph.add("CreateVideo", images=frames, fps=8.0)
    assert text(server.run(graph.set("OvisU1Understand", video=[made, 0]).prompt), graph) == expected
    graph.set("OvisU1Understand", video=loaded, max_frames=2, prompt="Two of them?")
    server.run(graph.prompt)
    two = positions_read(server)
    graph.set("OvisU1Understand", video=loaded, max_frames=3)
    server.run(graph.prompt)
    assert positions_read(server) == two + 266


def test_error_for_a_file_that_is_not_a_video(server: ComfyServer, info: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("not a video")
    graph = load("video", info).set("LoadVideo", file=server.upload(tmp_path / "words.mp4"))
    refused(server, graph, r"video: expected a file with a video, got one that cannot be read .*; choose another file")


def positions_read(server: ComfyServer) -> int:
    """The positions of the last prefill, from the log."""
    return int(server.log_text().rsplit("Ovis-U1: prefilled ", 1)[1].split()[0])


def read_without_pictures(info: dict[str, Any]) -> int:
    """Positions of the workflow's prompt, all but the pictures."""
    prompt = load("understand", info).prompt
    (asked,) = (node["inputs"]["prompt"] for node in prompt.values() if node["class_type"] == "OvisU1Understand")
    tokenizer = Tokenizer(comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer")
    return len(tokenizer.encode([*prompts.question(asked, images=1), *prompts.answer_start()])) - 1


@pytest.mark.parametrize(
    "question",
    [
        "",
        " ",
        "\u0645\u0627 \u0647\u0630\u0627\u061f",
        "\u3053\u308c\u306f\u4f55\u3067\u3059\u304b\u3002",
        "\U0001f408\u200d\u2b1b or \U0001f415?",
        "<image> <|im_end|> {prompt}",
        "a\r\n\tb\0c",
    ],
)
def test_questions_of_all_kinds(server: ComfyServer, info: dict[str, Any], photo: str, question: str) -> None:
    graph = understand(info, photo, prompt=question, max_new_tokens=4)
    assert text(server.run(graph.prompt), graph)


def test_question_without_an_image(server: ComfyServer, info: dict[str, Any], golden: dict[str, Any]) -> None:
    graph = load("understand", info)
    node = graph.prompt[graph.find("OvisU1Understand")]["inputs"]
    del node["image"]
    graph.set("OvisU1Understand", prompt="Write a haiku about \u96ea and émigrés \U0001f408.", max_new_tokens=24)
    assert text(server.run(graph.remove("LoadImage").prompt), graph) == golden["generate"]["text_only"]["text"]


def test_chat_does_not_recompute_earlier_turns(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    graph = load("chat", info).set("LoadImage", image=photo).set_all("OvisU1Understand", max_new_tokens=8)
    first, second = graph.find_all("OvisU1Understand")
    server.run(graph.prompt)
    graph.set_node(second, prompt="Another question?")
    before = len(server.log_text())
    result = server.run(graph.prompt)
    assert second in result.executed_nodes
    assert first not in result.executed_nodes
    # The first turn is not computed again: the second prefills only its own tokens.
    read = int(server.log_text()[before:].rsplit("Ovis-U1: prefilled ", 1)[1].split()[0])
    assert read < 40


@pytest.fixture(scope="module")
def pair(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two images of different size: those of the golden "multi"."""
    files = [tmp_path_factory.mktemp("pair") / f"{i}.png" for i in range(2)]
    for file, image in zip(files, (picture(256, 192), picture(200, 200, 1)), strict=True):
        image.save(file)
    return [server.upload(file) for file in files]


def about_pair(info: dict[str, Any], pair: list[str], prompt: str = "Describe each image.") -> Graph:
    """The workflow `multi_image` on the small model."""
    graph = load("multi_image", info).set("OvisU1Understand", prompt=prompt, max_new_tokens=24)
    for node, file in zip(graph.find_all("LoadImage"), pair, strict=True):
        graph.set_node(node, image=file)
    return graph


def test_images_of_two_sizes_match_the_authors_code(
    server: ComfyServer, info: dict[str, Any], pair: list[str], golden: dict[str, Any]
) -> None:
    graph = about_pair(info, pair)
    assert text(server.run(graph.prompt), graph) == golden["generate"]["multi"]["text"]
    assert positions_read(server) == golden["generate"]["multi"]["input_len"]
    # The order of the inputs counts, not that of the prompt.
    first, second = ([node, 0] for node in graph.find_all("LoadImage"))
    inputs = graph.prompt[graph.find("OvisU1Understand")]["inputs"]
    del inputs["image"]
    graph.set("OvisU1Understand", **{"images.image_3": second, "images.image_2": first})
    assert text(server.run(graph.prompt), graph) == golden["generate"]["multi"]["text"]
    graph.set("OvisU1Understand", **{"images.image_3": first, "images.image_2": second})
    assert text(server.run(graph.prompt), graph) != golden["generate"]["multi"]["text"]


def test_a_batch_comes_before_more_images(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = about(info, 64, 48, 2)
    node = graph.find("OvisU1Understand")
    texts = load("understand", info).prompt[load("understand", info).find("OvisU1Understand")]["inputs"]["prompt"]
    tokenizer = Tokenizer(comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer")
    more = {}
    for i, (width, height, count) in enumerate([(84, 56, 1), (64, 48, 2), (448, 448, 1)], 2):
        image = graph.add("EmptyImage", width=width, height=height, batch_size=count, color=i)
        more[f"images.image_{i}"] = [image, 0]
    server.run(graph.set_node(node, **more).prompt)
    words = len(tokenizer.encode([*prompts.question(texts, images=6), *prompts.answer_start()])) - 6
    sizes = [understanding_size(height, width) for width, height in [(64, 48)] * 4 + [(84, 56), (448, 448)]]
    assert len(set(sizes)) == 3
    assert positions_read(server) == words + sum(h // 28 * (w // 28) + 2 for h, w in sizes)


def each_of(info: dict[str, Any], pair: list[str], **inputs: Any) -> tuple[Graph, str]:
    """A question about each of the two images, and the node that shows the answers."""
    graph = about_pair(info, pair, "What is it?").set("OvisU1Understand", each_image=True, **inputs)
    return graph, graph.find("PreviewAny")


def alone(server: ComfyServer, info: dict[str, Any], file: str) -> str:
    """The answer about one image."""
    graph = understand(info, file, prompt="What is it?")
    return text(server.run(graph.prompt), graph)


def test_one_answer_for_each_image(
    server: ComfyServer, info: dict[str, Any], pair: list[str], golden: dict[str, Any]
) -> None:
    graph, preview = each_of(info, pair)
    lengths = graph.add("StringLength", string=graph.out("OvisU1Understand"))
    counted = graph.add("PreviewAny", source=[lengths, 0])
    steps: list[tuple[int, int]] = []
    result = server.run(graph.prompt, on_progress=lambda *step: steps.append(step))
    first, second = result.outputs[preview]["text"]
    assert first == golden["generate"]["single"]["text"]
    assert [first, second] == [alone(server, info, file) for file in pair]
    assert first != second
    # The nodes after it run once for each image; the node itself shows both answers.
    assert result.outputs[counted]["text"] == [str(len(first)), str(len(second))]
    shown = f"Image 1: {first.strip()}\n\nImage 2: {second.strip()}"
    assert text(result, graph) == shown
    texts = [e["data"]["text"] for e in result.events if e["type"] == "progress_text"]
    assert texts[-1] == shown
    assert texts[0].startswith("Image 1: ")
    values = [value for value, maximum in steps if maximum == 48]
    assert values == sorted(values)
    # Newer versions of ComfyUI leave out steps that follow each other quickly.
    assert values[0] <= 24 < values[-1] == 48
    # One answer about all images, and none of them computed again.
    graph.set("OvisU1Understand", each_image=False, prompt="Describe each image.")
    assert server.run(graph.prompt).outputs[preview]["text"] == [golden["generate"]["multi"]["text"]]


def test_each_image_is_the_same_for_one_image_and_without_images(
    server: ComfyServer, info: dict[str, Any], photo: str
) -> None:
    plain = understand(info, photo, prompt="One?")
    each = understand(info, photo, prompt="One?", each_image=True)
    assert text(server.run(each.prompt), each) == text(server.run(plain.prompt), plain)
    for graph in (plain, each):
        del graph.prompt[graph.find("OvisU1Understand")]["inputs"]["image"]
        graph.remove("LoadImage")
    assert text(server.run(each.prompt), each) == text(server.run(plain.prompt), plain)


def test_each_image_has_its_own_history(server: ComfyServer, info: dict[str, Any], pair: list[str]) -> None:
    def follow(graph: Graph) -> str:
        node = graph.find("OvisU1Understand")
        inputs = {"clip": graph.out("OvisU1Loader", 1), "prompt": "And now?", "max_new_tokens": 12}
        return graph.add("OvisU1Understand", history=[node, 1], **inputs)

    expected = []
    for file in pair:
        graph = understand(info, file, prompt="What is it?")
        node = follow(graph)
        expected += server.run(graph.prompt).outputs[node]["text"]
    graph, _ = each_of(info, pair)
    node = follow(graph)
    before = len(server.log_text())
    assert server.run(graph.prompt).outputs[node]["text"] == expected
    # The second question about each image prefills only its own tokens.
    read = [int(part.split()[0]) for part in server.log_text()[before:].split("Ovis-U1: prefilled ")[1:]]
    assert len(read) == 4
    assert min(read[:2]) > 100 > max(read[2:])
    # A cached run has the same answers.
    assert server.run(graph.prompt).outputs[node]["text"] == expected


def test_interrupt_between_answers_and_the_next_prompt_works(
    server: ComfyServer, info: dict[str, Any], pair: list[str]
) -> None:
    graph, _ = each_of(info, pair, max_new_tokens=3000)
    asked: list[int] = []

    def on_progress(value: int, maximum: int) -> None:
        if maximum == 6000 and value > 3000 and not asked:
            asked.append(value)
            server.interrupt()

    # The answers of this model do not end by themselves, or the second one would not be interrupted.
    result = server.run(graph.prompt, on_progress=on_progress, check=False)
    assert result.interrupted
    assert asked
    assert server.run(graph.set("OvisU1Understand", max_new_tokens=4).prompt).error is None


def test_system_prompt_stays_in_the_conversation(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    graph = load("chat", info).set("LoadImage", image=photo).set_all("OvisU1Understand", max_new_tokens=12)
    first, second = graph.find_all("OvisU1Understand")
    graph.set_node(second, prompt="And the colours?")

    def run() -> tuple[list[int], str]:
        """The positions that each turn prefilled, and the last answer."""
        before = len(server.log_text())
        outputs = server.run(graph.prompt).outputs
        read = server.log_text()[before:].split("Ovis-U1: prefilled ")[1:]
        return [int(part.split()[0]) for part in read], outputs[second]["text"][0]

    (one, two), _ = run()
    graph.set_node(first, system_prompt="Answer in verse.")
    tokenizer = Tokenizer(comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer")
    turn = len(tokenizer.encode(prompts.system_turn("Answer in verse.")))
    read, answer = run()
    assert read == [one + turn, two]
    # The same text again adds nothing.
    graph.set_node(second, system_prompt="Answer in verse.")
    assert run() == ([two], answer)
    graph.set_node(second, system_prompt="Answer in prose.")
    refused(
        server, graph, r"system_prompt: expected no text or the first question's system prompt, .*; clear system_prompt"
    )


@pytest.mark.parametrize("name", sorted(file.stem for file in OLD.glob("*.json")))
def test_workflows_of_the_first_version_still_run(
    server: ComfyServer, info: dict[str, Any], photo: str, name: str
) -> None:
    """Saved with version 0.1.0, whose Understand had neither the last inputs nor lists as outputs."""
    workflow = json.loads((OLD / f"{name}.json").read_text(encoding="utf-8"))
    graph = Graph(to_api(workflow, info)).set("OvisU1Loader", model_name="tiny").set_all("LoadImage", image=photo)
    graph.set_all("OvisU1Understand", max_new_tokens=8)
    outputs = server.run(graph.prompt).outputs
    for preview, node in zip(graph.find_all("PreviewAny"), graph.find_all("OvisU1Understand"), strict=True):
        assert outputs[preview]["text"] == outputs[node]["text"]
        assert len(outputs[node]["text"]) == 1
        new = {"system_prompt": "", "each_image": False}
        assert {**graph.prompt[node]["inputs"], **new} == graph.prompt[node]["inputs"]


def test_error_for_a_wrong_value_among_more_images(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = about(info, 64, 48)
    graph.set("OvisU1Understand", **{"images.image_2": [graph.add("OtherValue", name="one image"), 0]})
    refused(server, graph, r"images\.image_2: expected an IMAGE of 4 dimensions, got 3 dimensions; connect Load Image")


def test_describe_and_redraw(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    graph = load("describe_and_redraw", info).set("LoadImage", image=photo).set("OvisU1Sampler", steps=2)
    graph.set("OvisU1Understand", max_new_tokens=8).set_all("PrimitiveInt", value=128)
    assert saved_image(server, server.run(graph.prompt), graph).size == (128, 128)


def test_pick_the_best(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = load("pick_the_best", info).set("OvisU1Sampler", steps=2, seed=5).set_all("PrimitiveInt", value=128)
    scores = graph.add("PreviewAny", source=graph.out("OvisU1Judge"))
    every = graph.add("SaveImage", images=graph.out("OvisU1Decode"), filename_prefix="tests/all")
    result = server.run(graph.prompt)
    ranking = result.outputs[graph.find("OvisU1Judge")]["text"][0].split("\n")
    assert len(ranking) == 4
    place, score = zip(*(line.split(". image ")[1].split(": ") for line in ranking), strict=True)
    assert sorted(place) == ["1", "2", "3", "4"]
    assert sorted(map(float, score), reverse=True) == list(map(float, score))
    # A list of numbers: the node after it runs once for each.
    assert scores in result.executed_nodes
    best, *_ = (node for node in graph.find_all("SaveImage") if node != every)
    images = saved_images(server, result, every)
    (chosen,) = saved_images(server, result, best)
    assert chosen.tobytes() == images[int(place[0]) - 1].tobytes()


def test_core_generate_text_answers_the_same(
    server: ComfyServer, info: dict[str, Any], photo: str, golden: dict[str, Any]
) -> None:
    if "TextGenerate" not in info:
        pytest.skip("this ComfyUI has no Generate Text")
    graph = understand(info, photo)
    node = graph.add(
        "TextGenerate",
        clip=graph.out("OvisU1Loader", 1),
        prompt="What is it?",
        image=graph.out("LoadImage"),
        max_length=24,
        sampling_mode="off",
    )
    shown = graph.add("PreviewAny", source=[node, 0])
    result = server.run(graph.prompt)
    assert result.outputs[shown]["text"][0] == golden["generate"]["single"]["text"]


def refused(server: ComfyServer, graph: Graph, words: str) -> None:
    with pytest.raises((PromptFailed, PromptRejected), match=words):
        server.run(graph.prompt)


def test_error_for_a_question_that_is_too_long(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    graph = understand(info, photo, prompt="word " * 50000)
    refused(server, graph, r"prompt: expected at most 40960 tokens, got \d+ .*; shorten the text\.")


def test_error_for_too_many_frames(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = about(info, 1500, 1500, 16, slot="video", max_frames=16)
    refused(server, graph, r"prompt: .* 40960 tokens, .* for images\); use fewer or smaller images or frames")


def test_error_for_image_and_video_together(server: ComfyServer, info: dict[str, Any], photo: str) -> None:
    graph = understand(info, photo)
    graph.set("OvisU1Understand", video=graph.out("LoadImage"))
    refused(server, graph, r"video: expected either images or a video, got both; disconnect image or video\.")


def test_error_for_a_prompt_that_the_question_does_not_use(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = load("pick_the_best", info).set("OvisU1Sampler", steps=1).set_all("PrimitiveInt", value=64)
    refused(server, graph.set("OvisU1Judge", question="Is it good?"), r"prompt: expected \{prompt\} in question")


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("seed", -1, r"seed: expected a whole number from 0 to .*, got -1"),
        ("top_k", -1, r"top_k: expected a whole number from 0 to 1000, got -1"),
        ("max_frames", 0, r"max_frames: expected a whole number from 1 to 160, got 0"),
        ("max_new_tokens", 10**9, r"max_new_tokens: expected a whole number from 1 to 32768, got 1000000000"),
    ],
)
def test_errors_for_numbers_from_links(
    server: ComfyServer, info: dict[str, Any], photo: str, name: str, number: int, words: str
) -> None:
    graph = understand(info, photo)
    # Core's PrimitiveInt has no limits near these.
    value = graph.add("PrimitiveInt", value=number)
    refused(server, graph.set("OvisU1Understand", **{name: [value, 0]}), words)
