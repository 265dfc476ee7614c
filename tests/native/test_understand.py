"""Answers of the CLIP in ComfyUI, compared with the authors' results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.pictures import picture
from ovis_core.networks.kv_cache import KVCache
from ovis_core.pixels import to_tensor
from ovis_core.special_tokens import Control
from ovis_core.text import prompts
from ovis_core.text.conversation import Conversation, PromptCache
from ovis_core.text.decoding import GREEDY, Sampling, prefill

FIRST, SECOND = to_tensor(picture(256, 192)), to_tensor(picture(200, 200, 1))
FRAMES = [to_tensor(picture(112, 84, k)) for k in range(3)]
CASES = {
    "single": ("What is it?", [FIRST], []),
    "multi": ("Describe each image.", [FIRST, SECOND], []),
    "video": ("Describe the video.", [], FRAMES),
    "text_only": ("Write a haiku about \u96ea and émigrés \U0001f408.", [], []),
}
WORDS = CASES["text_only"][0]


@pytest.fixture(scope="module")
def clip(loaded: tuple[Any, Any, Any]) -> Any:
    return loaded[1]


def ask(
    clip: Any,
    prompt: str = WORDS,
    images: Any = (),
    frames: Any = (),
    tokens: int = 24,
    thinking: bool = False,
    sampling: Sampling = GREEDY,
    before: Conversation | None = None,
    **kwargs: Any,
) -> Any:
    from ovis_core.native.understanding import understand

    return understand(clip, prompt, images, frames, 16, tokens, thinking, sampling, before, **kwargs)


@contextmanager
def calls(*modules: torch.nn.Module) -> Iterator[list[int]]:
    """How often each module runs."""
    counts = [0] * len(modules)

    def count(i: int) -> Any:
        return lambda *_: counts.__setitem__(i, counts[i] + 1)

    hooks = [module.register_forward_pre_hook(count(i)) for i, module in enumerate(modules)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", CASES)
def test_answers_match_the_authors_code(clip: Any, golden: dict[str, Any], name: str) -> None:
    expected = golden["generate"][name]
    answer = ask(clip, *CASES[name])
    assert answer.text == expected["text"]
    assert answer.reasoning == ""
    tokens = answer.conversation.tokens
    assert list(tokens[-26:-2]) == expected["output_ids"]
    assert answer.conversation.cache.length == expected["input_len"] + 23


@pytest.mark.parametrize("name", CASES)
def test_core_generate_text(clip: Any, golden: dict[str, Any], name: str) -> None:
    if not hasattr(clip, "generate"):
        pytest.skip("this ComfyUI has no CLIP.generate")
    prompt, images, frames = CASES[name]
    if len({image.shape for image in images}) > 1:
        pytest.skip("a batch has one size")
    batch, video = (torch.stack(many) if many else None for many in (images, frames))
    tokens = clip.tokenize(prompt, image=batch, video=video, skip_template=False, min_length=1, thinking=False)
    ids = clip.generate(tokens, do_sample=False, max_length=24)
    assert ids == golden["generate"][name]["output_ids"]
    assert clip.decode(ids) == golden["generate"][name]["text"]


def as_the_newest_generate_text(
    clip: Any, prompt: str, max_new_tokens: int = 24, thinking: bool = False, **inputs: Any
) -> tuple[str, str]:
    """Calls a CLIP like core's node of the newest ComfyUI, and splits the result: (text, thinking)."""
    said = {"images": None, "video": None, "audio": None, "system_prompt": "", **inputs}
    tokens = clip.tokenize(prompt, skip_template=False, min_length=1, thinking=thinking, **said)
    model = clip.load_model().model
    # The options that CLIP.generate of the newest ComfyUI passes on.
    drawn = {
        "do_sample": False,
        "max_length": max_new_tokens,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "min_p": 0.0,
    }
    penalties = {"repetition_penalty": 1.0, "seed": None, "presence_penalty": 0.0}
    written = clip.tokenizer.decode(model.generate(tokens, **drawn, **penalties, mtp=True), skip_special_tokens=True)
    reasoning, _, text = written.partition("</think>")
    if not reasoning.lstrip().startswith("<think>"):
        reasoning, text = "", written
    return text.strip(), reasoning.replace("<think>", "", 1).strip()


@pytest.mark.parametrize("name", CASES)
def test_newest_generate_text_uses_images_and_video(clip: Any, golden: dict[str, Any], name: str) -> None:
    """It passes images as a list of batches, which may have different sizes."""
    prompt, images, frames = CASES[name]
    inputs = {"images": [image[None] for image in images] or None, "video": torch.stack(frames) if frames else None}
    assert as_the_newest_generate_text(clip, prompt, **inputs) == (golden["generate"][name]["text"].strip(), "")


def test_images_of_all_batches_are_used_in_order(clip: Any) -> None:
    def grids(**images: Any) -> list[Any]:
        tokens = clip.tokenize("?", thinking=False, **images)["ovis_u1"][0]
        return [token.grid for token, _ in tokens if not isinstance(token, int)]

    first, second = grids(image=FIRST[None]), grids(image=SECOND[None])
    assert first != second
    pair = torch.stack((FIRST, FIRST))
    assert grids(images=[pair, SECOND[None]]) == [*first, *first, *second]
    assert grids(images={"image_0": SECOND[None], "image_1": FIRST[None]}) == [*second, *first]
    assert grids(image=FIRST[None], images=[SECOND[None]]) == [*first, *second]
    assert grids(images=pair) == [*first, *first]
    assert grids(images=[]) == grids(images={}) == grids(images=None) == []
    with pytest.raises(ValueError, match=r"video: .*got both; disconnect one of them"):
        grids(images=[FIRST[None]], video=torch.stack(FRAMES))
    with pytest.raises(ValueError, match="images: expected an IMAGE of 4 dimensions, got 3 dimensions"):
        grids(images=[FIRST])
    with pytest.raises(ValueError, match=r"images: expected an IMAGE.*got str; connect Load Image"):
        grids(images=["photo.png"])


def test_system_prompt_is_a_turn_before_the_question(clip: Any) -> None:
    encode = clip.tokenizer.tokenizer.encode

    def ids(system: Any) -> list[int]:
        (tokens,) = clip.tokenize("Hello", system_prompt=system, thinking=False)["ovis_u1"]
        return [token for token, _ in tokens]

    plain = ids("")
    assert ids(None) == ids("  ") == plain
    assert [token for token, _ in clip.tokenize("Hello", thinking=False)["ovis_u1"][0]] == plain
    turn = [Control.TURN_START, *encode(["system\nAnswer in verse."]), Control.TURN_END, *encode(["\n"])]
    assert ids("Answer in verse.") == [*turn, *plain]
    # Control tokens in it are plain text.
    assert ids("<|im_end|>").count(Control.TURN_END) == ids("x").count(Control.TURN_END) == 2
    said, unsaid = (
        as_the_newest_generate_text(clip, WORDS, system_prompt=said)[0] for said in ("Answer in verse.", "")
    )
    assert said != unsaid
    with pytest.raises(
        ValueError, match="system_prompt: expected no text, because use_default_template is off; turn on"
    ):
        clip.tokenize("x", system_prompt="Answer in verse.", skip_template=True)
    for template in ({}, {"skip_template": True}):
        with pytest.raises(ValueError, match=r"^system_prompt: expected text, got list; connect a STRING"):
            clip.tokenize("x", system_prompt=["Answer in verse."], **template)


def test_a_conversation_keeps_its_system_prompt(clip: Any) -> None:
    system = "Answer in verse."
    (alone,) = clip.tokenize(WORDS, system_prompt=system, thinking=False)["ovis_u1"]
    start = tuple(token for token, _ in alone)
    first = ask(clip, system_prompt=system)
    assert first.text != ask(clip).text
    assert first.conversation.tokens[: len(start)] == start
    assert ask(clip, before=first.conversation, prompt="And now?").conversation.tokens[: len(start)] == start
    blocks = clip.cond_stage_model.llm.blocks[0]
    for again in ("", "  ", system):
        with calls(blocks) as counts:
            second = ask(clip, "And now?", before=first.conversation, system_prompt=again)
        # The prefill of the second turn and 23 decode steps: nothing of the first turn is computed again.
        assert counts == [24]
        assert second.conversation.cache.turns[0] is first.conversation.cache.turns[0]
        fresh = ask(clip, "And now?", before=Conversation(first.conversation.tokens), system_prompt=again)
        assert (fresh.text, fresh.conversation.tokens) == (second.text, second.conversation.tokens)
        assert second.conversation.tokens.count(Control.TURN_START) == 5
    words = (
        r"^system_prompt: expected no text or the first question's system prompt, .*, got different text; clear "
        "system_prompt"
    )
    for before in (first.conversation, ask(clip).conversation):
        with pytest.raises(ValueError, match=words):
            ask(clip, "And now?", before=before, system_prompt="Answer in prose.")


def test_generate_text_splits_off_the_think_block(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.text import decoding

    encode = clip.tokenizer.tokenizer.encode
    thoughts, answer = encode(["\nHm, a cat.\n"]), encode(["\n\nA cat."])
    whole = [Control.THINK, *thoughts, Control.END_THINK, *answer, Control.TURN_END]
    for written, expected in ((whole, ("A cat.", "Hm, a cat.")), (whole[:4], ("", "Hm"))):
        script = list(written)
        monkeypatch.setattr(
            decoding.Sampler, "sample", lambda self, logits, script=script: torch.tensor([script.pop(0)])
        )
        assert as_the_newest_generate_text(clip, "?", len(written), thinking=True) == expected
    decode = clip.tokenizer.decode
    assert decode(whole) == "<think>\nHm, a cat.\n</think>\n\nA cat."
    assert decode(whole, skip_special_tokens=False) == "<think>\nHm, a cat.\n</think>\n\nA cat.<|im_end|>"
    for other in (torch.tensor(whole), torch.tensor([whole]), list(torch.tensor(whole)), tuple(whole)):
        assert decode(other) == decode(whole)
    assert decode([Control.TURN_END, Control.TURN_END], skip_special_tokens=False) == 2 * "<|im_end|>"


def test_unset_numbers_of_generate_text_have_no_effect(clip: Any) -> None:
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    penalties = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "seed": 0}
    tokens = clip.tokenize(WORDS, image=None)

    def written(**said: Any) -> list[int]:
        return clip.cond_stage_model.generate(tokens, max_length=6, **{**off, **penalties, **said})

    plain = written()
    for name in (*off, *penalties):
        assert written(**{name: None}) == plain, name
    assert written(top_k=-1) == plain
    assert written(temperature=None, do_sample=False) == written(do_sample=False)


UNKNOWN = {"lyrics": "la", "image_embeds": torch.ones(1, 2), "llama_template": "{}", "image_interleave": 2}


@pytest.mark.parametrize("name", UNKNOWN)
def test_errors_for_unknown_options(clip: Any, name: str) -> None:
    off = r"; set it to 0 \(it is 2\)" if name == "image_interleave" else "; clear it"
    words = rf"^{name}: Ovis-U1 does not support this input{off}, or remove the node that sets it\.$"
    encoding = rf"^clip: this node is made for another model and sets {name}, which Ovis-U1 does not have; use"
    for question, refusal in (({}, encoding), ({"image": None}, words), ({"thinking": False}, words)):
        with pytest.raises(ValueError, match=refusal):
            clip.tokenize("x", **question, **{name: UNKNOWN[name]})
        for empty in (None, "", [], {}, False):
            assert clip.tokenize("x", **question, **{name: empty})["ovis_u1"]
    tokens = clip.tokenize("x", thinking=False)
    with pytest.raises(ValueError, match=words):
        clip.cond_stage_model.generate(tokens, max_length=1, **{name: UNKNOWN[name]})


@pytest.mark.parametrize("neutral", [0, 0.0, torch.zeros(()), torch.zeros((), dtype=torch.bool)])
def test_unknown_numbers_without_effect_are_accepted(clip: Any, neutral: Any) -> None:
    (plain,) = clip.tokenize("x", image=None)["ovis_u1"]
    tokens = clip.tokenize("x", image=None, image_interleave=neutral)
    assert tokens["ovis_u1"] == [plain]
    assert clip.tokenize("x", image_interleave=neutral)["ovis_u1"]
    write = clip.cond_stage_model.generate
    greedy = {"do_sample": False, "max_length": 2}
    numbers = {"frequency_penalty": 0.0, "no_repeat_ngram_size": 0, "num_beams": 1, "typical_p": 1.0, "more": neutral}
    assert write(tokens, **greedy, **numbers) == write(tokens, **greedy)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [(0.5, r"; set it to 0 \(it is 0\.5\)"), (True, "; turn it off"), (torch.ones(()), "; clear it")],
)
def test_errors_for_unknown_numbers_with_an_effect(clip: Any, value: Any, remedy: str) -> None:
    words = rf"^frequency_penalty: Ovis-U1 does not support this input{remedy}, or remove the node that sets it\.$"
    tokens = clip.tokenize("x", image=None)
    with pytest.raises(ValueError, match=words):
        clip.cond_stage_model.generate(tokens, max_length=1, frequency_penalty=value)
    with pytest.raises(ValueError, match=words):
        clip.tokenize("x", image=None, frequency_penalty=value)


def test_errors_for_options_of_other_tokenizers(clip: Any) -> None:
    other = clip.clone()
    if not hasattr(other, "set_tokenizer_option"):
        pytest.skip("this ComfyUI has no options of tokenizers")
    other.set_tokenizer_option("t5xxl_min_padding", 3)
    with pytest.raises(ValueError, match="tokenizer_options: Ovis-U1 does not support"):
        other.tokenize("x", thinking=False)
    words = r"min_length: expected at most \d+ \(the prompt's length, .*\), got 5000; set min_length to 1"
    with pytest.raises(ValueError, match=words):
        clip.tokenize("x", min_length=5000)


def test_comfyui_counts_and_frees_the_memory_of_a_conversation(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ComfyUI's own RAM cache, next to outputs that are slightly larger and slightly smaller."""
    import gc
    import time
    import weakref
    from types import SimpleNamespace

    import psutil
    from comfy_execution import caching

    first = ask(clip, "What is it?", [FIRST])
    talk = ask(clip, "What colour?", before=first.conversation).conversation
    held = [x for turn in talk.cache.turns for x in turn] + [t.patches for t in talk.tokens if not isinstance(t, int)]
    size = sum(x.nbytes for x in held)
    assert len(held) == 5
    # Older versions count half of a plain tensor's size, and all of a tensor in an object.
    old = not hasattr(caching.RAMPressureCache, "ram_release")
    tensors = [torch.zeros(int(size * part) * (2 if old else 1), dtype=torch.uint8) for part in (0.9, 1.1)]
    cache = caching.RAMPressureCache(caching.CacheKeySetID)
    outputs = {"smaller": [[tensors[0]]], "talk": [["text"], [talk], ["reasoning"]], "larger": [[tensors[1]]]}
    for key, output in outputs.items():
        cache.cache[key] = (output, {}) if old else SimpleNamespace(outputs=output, ui={})
        cache.timestamps[key] = time.time()
        cache.used_generation[key] = 0
        cache.children[key] = {}
    left = 2  # evictions until there is enough memory

    def memory() -> Any:
        return SimpleNamespace(available=2**50 if len(cache.cache) <= 3 - left else 0)

    monkeypatch.setattr(psutil, "virtual_memory", memory)
    alive = [weakref.ref(x) for x in held]
    del first, talk, held, outputs
    if old:
        cache.poll(ram_headroom=1)
    else:
        assert cache.ram_release(2**30, free_active=True) >= size + tensors[1].nbytes
    assert list(cache.cache) == ["smaller"]
    gc.collect()
    assert not any(ref() for ref in alive)


def test_bare_text_is_tokenized_without_the_template(clip: Any, golden: dict[str, Any]) -> None:
    tokens = clip.tokenize("Once upon", image=FIRST[None], skip_template=True, min_length=1)
    ((seen, _), *rest) = tokens["ovis_u1"][0]
    assert list(seen.grid) == golden["generate"]["single"]["grid_thws"][0]
    assert [token for token, _ in rest] == clip.tokenizer.tokenizer.encode(["Once upon"])


def test_conversation_continues_without_recomputing_earlier_turns(clip: Any) -> None:
    text = clip.cond_stage_model
    first = ask(clip, "What is it?", [FIRST])
    with calls(text.visual_tokenizer, text.llm.blocks[0]) as counts:
        second = ask(clip, "What colour?", before=first.conversation)
    # The prefill of the second turn and 23 decode steps.
    assert counts == [0, 24]
    forgotten = Conversation(first.conversation.tokens)
    with calls(text.visual_tokenizer) as counts:
        again = ask(clip, "What colour?", before=forgotten)
    assert counts == [1]
    assert (again.text, again.conversation.tokens) == (second.text, second.conversation.tokens)
    assert second.conversation.tokens[: len(first.conversation.tokens)] == first.conversation.tokens
    assert second.conversation.cache.turns[0] is first.conversation.cache.turns[0]
    other = ask(clip, "What colour?", before=ask(clip, "What is it?", [SECOND]).conversation)
    assert other.conversation.tokens != second.conversation.tokens


def test_cache_is_not_kept_unless_asked(clip: Any) -> None:
    assert ask(clip, keep=False).conversation.cache is None


def test_conversation_is_recomputed_with_other_weights(clip: Any) -> None:
    first = ask(clip, "What is it?", [FIRST])
    patched = clip.clone()
    name = "llm.model.layers.0.mlp.down_proj.weight"
    shape = patched.cond_stage_model.state_dict()[name].shape
    patched.patcher.add_patches({name: ("diff", (torch.ones(shape),))}, 0.01)
    with calls(clip.cond_stage_model.visual_tokenizer) as counts:
        ask(patched, "What colour?", before=first.conversation)
    assert counts == [1]
    with calls(clip.cond_stage_model.visual_tokenizer) as counts:
        ask(clip, "What colour?", before=first.conversation)
    assert counts == [0]


def test_thinking_is_split_from_the_answer(clip: Any, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model does not think, so the test inserts the think tags; the other tokens are the model's."""
    from ovis_core.text import decoding

    tokenizer = clip.tokenizer.tokenizer
    thoughts, words = tokenizer.encode(["\nHm, a cat.\n"]), tokenizer.encode(["\n\nA cat."])
    script = [Control.THINK, *thoughts, Control.END_THINK, *words, Control.TURN_END, *words]
    monkeypatch.setattr(decoding.Sampler, "sample", lambda self, logits: torch.tensor([script.pop(0)]))
    first = ask(clip, "What is it?", [FIRST], thinking=True, tokens=100)
    assert (first.text, first.reasoning) == ("A cat.", "Hm, a cat.")
    assert len(script) == len(words)
    assert first.conversation.cache.length == golden["generate"]["single"]["input_len"] - 4
    monkeypatch.undo()
    expected = golden["prompts"]["chat"]["raw_input_ids"]
    after = clip.tokenizer.question("What colour?")
    said = [t if isinstance(t, int) else -200 for t in (*first.conversation.tokens, *after)]
    assert said == expected
    second = ask(clip, "What colour?", before=first.conversation)
    forgotten = ask(clip, "What colour?", before=Conversation(first.conversation.tokens))
    assert second.conversation.tokens == forgotten.conversation.tokens


@pytest.mark.parametrize("written", [[100, Control.THINK, 101, 102], [Control.THINK, 100, Control.END_THINK, 101]])
def test_think_block_with_thinking_off(clip: Any, monkeypatch: pytest.MonkeyPatch, written: list[int]) -> None:
    from ovis_core.text import decoding

    script = [*written, Control.TURN_END]
    monkeypatch.setattr(decoding.Sampler, "sample", lambda self, logits: torch.tensor([script.pop(0)]))
    first = ask(clip, "one")
    monkeypatch.undo()
    assert first.reasoning == ""
    assert first.conversation.cache.length == len(first.conversation.tokens) - 2
    kept, forgotten = (
        ask(clip, "and two", before=talk).conversation.tokens
        for talk in (first.conversation, Conversation(first.conversation.tokens))
    )
    assert kept == forgotten


def test_error_for_too_long_prompts_comes_before_patches_are_cut(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.native import tokens

    monkeypatch.setattr(tokens, "understanding_input", None)
    with pytest.raises(ValueError, match=r"for images\); use fewer or smaller images or frames"):
        ask(clip, "?", frames=[torch.zeros(1500, 1500, 3)] * 16)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((64, 64, 3), "image: expected an IMAGE of 4 dimensions, got 3 dimensions"),
        ((1, 2, 64, 64, 3), "image: expected an IMAGE of 4 dimensions, got 5 dimensions"),
        ((1, 0, 64, 3), "image: expected at least one image, got an empty batch"),
    ],
)
def test_errors_for_core_images_of_another_shape(clip: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip.tokenize("x", image=torch.zeros(shape), thinking=False)


def test_pinned_weights_are_not_copied_and_patched_ones_are_not_pinned(
    comfyui: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ovis_core.native.layers import comfy_layers

    alive = []
    cast_weight = comfy_layers.cast_weight

    @contextmanager
    def spy(layer: Any, like: Tensor) -> Iterator[Tensor]:
        with cast_weight(layer, like) as weight:
            alive.append(weight)
            yield weight
        alive.pop()

    monkeypatch.setattr(comfy_layers, "cast_weight", spy)
    llm = clip.cond_stage_model.llm
    own = {id(weight) for weight in llm.parameters()}
    for dtype in (torch.float32, torch.bfloat16):
        with comfy_layers.pinned(llm, torch.zeros(1, dtype=dtype)) as whole:
            assert whole
            assert {id(weight) for weight in alive} == own  # and no copies in another type
    assert not alive
    monkeypatch.setattr(llm.blocks[1].mlp["up_proj"], "weight_function", [torch.clone])
    with comfy_layers.pinned(llm, torch.zeros(1)) as whole:
        assert not whole
        assert not alive


def test_end_tokens_end_the_answer_and_are_not_shown(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.text import decoding

    words = clip.tokenizer.tokenizer.encode(["A cat."])
    for end in prompts.END_TOKENS:
        script = [*words, end, *words]
        monkeypatch.setattr(
            decoding.Sampler, "sample", lambda self, logits, script=script: torch.tensor([script.pop(0)])
        )
        assert ask(clip).text == "A cat."
        assert script == words


def test_seeds_and_temperature(clip: Any) -> None:
    drawn = {"temperature": 1.5, "top_p": 1.0, "top_k": 0}
    one, same, other = (ask(clip, sampling=Sampling(**drawn, seed=seed)).text for seed in (1, 1, 2))
    assert one == same != other
    greedy = ask(clip).text
    assert ask(clip, sampling=Sampling(temperature=0.001, top_p=1.0, top_k=0)).text == greedy != one


def test_errors_for_too_long_prompts_give_the_count(clip: Any) -> None:
    limit = clip.cond_stage_model.config.language.max_position_embeddings
    with pytest.raises(ValueError, match=rf"prompt: expected at most {limit} tokens, got \d+ .*; shorten the text"):
        ask(clip, "word " * limit)
    with pytest.raises(
        ValueError, match=rf"^system_prompt: expected at most {limit} tokens, got \d+ .*; shorten the text"
    ):
        ask(clip, system_prompt="word " * limit)
    with pytest.raises(ValueError, match=r"^prompt: expected at most .*; use fewer or smaller images or frames"):
        ask(clip, images=[torch.zeros(1500, 1500, 3)] * 30, system_prompt="Answer in a longer text than the question.")
    huge = torch.zeros(1500, 1500, 3)
    with pytest.raises(
        ValueError, match=rf"{limit} tokens, .* \(\d+ of them for images\); use fewer or smaller images or"
    ):
        ask(clip, "?", frames=[huge] * 16)


def test_generation_stops_at_the_last_position(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    text = clip.cond_stage_model
    length = len(clip.tokenizer.question(WORDS))
    for max_new_tokens in (3, 1):
        language = dataclasses.replace(text.config.language, max_position_embeddings=length + max_new_tokens - 1)
        monkeypatch.setattr(text, "config", dataclasses.replace(text.config, language=language))
        written = ask(clip, tokens=100).conversation.tokens[length:-2]
        assert len(written) == max_new_tokens


def test_memory_is_requested_before_it_is_used(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy import model_management

    text, asked = clip.cond_stage_model, []
    load = model_management.load_models_gpu
    with calls(text.visual_tokenizer) as counts:

        def spy(models: Any, memory_required: float = 0, **kwargs: Any) -> Any:
            asked.append((memory_required, counts[0]))
            return load(models, memory_required=memory_required, **kwargs)

        monkeypatch.setattr(model_management, "load_models_gpu", spy)
        ask(clip, "What is it?", [FIRST], tokens=2000)
        ask(clip, "What is it?", [FIRST], tokens=1)
    (much, before), (little, _) = asked
    assert before == 0
    language = text.config.language
    cache = [KVCache.bytes_needed(language, length, torch.float32) for length in (1999, 285)]
    assert much - little == cache[0]
    held = KVCache(language, 285, torch.device("cpu"), torch.float32)
    assert cache[1] == sum(x.nbytes for x in (held.keys, held.values, held.cos, held.sin))


def test_interrupt_within_one_token(clip: Any) -> None:
    from comfy import model_management

    text, layers = clip.cond_stage_model, clip.cond_stage_model.config.language.num_hidden_layers
    ran = []

    def interrupt_at_the_tenth(*_: Any) -> None:
        ran.append(1)
        if len(ran) == 10 * layers:
            model_management.interrupt_current_processing(True)

    hooks = [block.register_forward_hook(interrupt_at_the_tenth) for block in text.llm.blocks]
    try:
        with pytest.raises(model_management.InterruptProcessingException):
            ask(clip, tokens=1000)
    finally:
        for hook in hooks:
            hook.remove()
        model_management.interrupt_current_processing(False)
    assert len(ran) == 10 * layers
    assert ask(clip, tokens=2).text


def test_bfloat16_weights_are_not_cast_for_every_token_on_a_cpu(comfyui: Any, config: Any, weights: Any) -> None:
    from ovis_core.native.clip import build_clip
    from ovis_core.native.layers.network_weights import prepare_weights
    from ovis_core.weights.components import TEXT
    from ovis_core.weights.layout import LANGUAGE, TABLE, VISION
    from ovis_core.weights.lazy_tensors import LazyTensor

    half = {k: LazyTensor.of(v.bfloat16()) for k, v in weights.items() if k.startswith((LANGUAGE, VISION, TABLE))}
    clip = build_clip(config, prepare_weights(TEXT, half), None)
    seen: list[torch.dtype] = []
    block = clip.cond_stage_model.llm.blocks[0]
    block.mlp["gate_proj"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    answer = ask(clip, "What is it?", [FIRST], tokens=4)
    assert set(seen) == {torch.bfloat16}
    assert isinstance(answer.conversation.cache, PromptCache)
    seen.clear()
    assert clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))[0][0].dtype == torch.float32
    assert set(seen) == {torch.float32}


def test_judge(clip: Any, text_model: Any) -> None:
    from ovis_core.native.understanding import judge

    question, tokenizer = "Is it a cat? Answer yes or no.", clip.tokenizer.tokenizer
    images = [FIRST, torch.flip(FIRST, (0,)), torch.zeros(32, 2, 3)]
    with calls(clip.cond_stage_model.llm.blocks[0]) as counts:
        verdict = judge(clip, images, question)
    assert counts == [3]
    for image, score in zip(images, verdict.scores, strict=True):
        tokens = clip.tokenizer.question(question, [image])
        logits = prefill(text_model, tokens, 1, torch.device("cpu"), torch.float32)[1]
        chance = logits.double().softmax(0)
        yes, no = (
            sum(float(chance[tokenizer.encode([word])[0]]) for word in words)
            for words in (("Yes", "yes"), ("No", "no"))
        )
        assert score == pytest.approx(yes / (yes + no), abs=1e-6)
    assert len(set(verdict.scores)) == 3
    assert [verdict.scores[i] for i in verdict.order] == sorted(verdict.scores, reverse=True)


def test_incomplete_characters_are_not_shown(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.native.page import progress

    shown: list[str] = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    tokenizer = clip.tokenizer.tokenizer
    text = "\u96ea\U0001f408\u200d\u2b1b émigré \u05e9\u05dc\u05d5\u05dd"
    ids = tokenizer.encode([text])
    writing = progress.DecodingProgress(len(ids), tokenizer)
    for i in range(len(ids)):
        writing(ids[: i + 1])
    writing.done(ids, 0)
    assert shown[-1] == text
    assert len(shown) > 10
    for partial in shown:
        assert text.startswith(partial)


def test_frames_are_sampled_evenly(clip: Any) -> None:
    from ovis_core.pixels import SampledFrames

    frames: list[Tensor] = list(torch.arange(100))
    assert [int(f) for f in SampledFrames(frames, 4)] == [0, 33, 66, 99]
    assert [int(f) for f in SampledFrames(frames, 1)] == [0]
    assert [int(f) for f in SampledFrames(frames, 100)] == [int(f) for f in SampledFrames(frames, 999)] == [*range(100)]
    assert len(SampledFrames([], 8)) == 0
    (video,) = [t for t in clip.tokenizer.question("?", frames=FRAMES * 10, max_frames=5) if not isinstance(t, int)]
    assert video.grid[0] == 5
