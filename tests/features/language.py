"""Text in and out of core's nodes."""

from __future__ import annotations

from typing import Any

from .table import Bench, Lab, row, same
from .training import FOLDER

AREA = "language"


def understand(bench: Bench, **inputs: Any) -> list[Any]:
    """The text of an OvisU1Understand that writes a few words."""
    given = {"clip": bench.clip, "prompt": "Hello", "max_new_tokens": 12}
    return bench.node("OvisU1Understand", **{**given, **inputs})


def shown(lab: Lab, bench: Bench, *links: list[Any]) -> list[str]:
    """The text that PreviewAny shows of each."""
    nodes = [bench.add("PreviewAny", source=link) for link in links]
    result = bench.execute()
    return ["".join(result.outputs[node]["text"]) for node in nodes]


@row(AREA, "PreviewAny", "shows the text that the node shows")
def preview_any(lab: Lab) -> None:
    bench = lab.bench()
    link = understand(bench)
    node = bench.add("PreviewAny", source=link)
    result = bench.execute()
    assert result.outputs[node]["text"] == result.outputs[link[0]]["text"]
    assert result.outputs[node]["text"][0]


@row(
    AREA,
    "string nodes",
    "StringConcatenate, StringReplace and StringLength work on an answer, and a question may be one",
)
def strings(lab: Lab) -> None:
    bench = lab.bench()
    question = bench.node("StringConcatenate", string_a="Hel", string_b="lo", delimiter="")
    joined, plain = understand(bench, prompt=question), understand(bench)
    marked = bench.node("StringConcatenate", string_a=plain, string_b="!", delimiter=" ")
    replaced = bench.node("StringReplace", string=marked, find=" !", replace="?")
    length = bench.node("StringLength", string=plain)
    one, two, three, four, count = shown(lab, bench, joined, plain, marked, replaced, length)
    assert one == two
    assert three == f"{two} !"
    assert four == f"{two}?"
    assert int(count) == len(two)


@row(AREA, "RegexExtract", "extracts a part of an answer")
def regex(lab: Lab) -> None:
    bench = lab.bench()
    text = understand(bench)
    flags = {"case_insensitive": False, "multiline": False, "dotall": True, "group_index": 1}
    found = bench.node("RegexExtract", string=text, regex_pattern=r"^(\S)", mode="First Match", **flags)
    whole, first = shown(lab, bench, text, found)
    assert first == whole.lstrip()[:1]


@row(AREA, "lists", "each image of a list is asked about separately")
def lists(lab: Lab) -> None:
    bench = lab.bench()
    folder = bench.node("LoadImageTextDataSetFromFolder", folder=FOLDER)
    answer = understand(bench, image=folder, prompt=[folder[0], 1])
    node = bench.add("PreviewAny", source=answer)
    result = bench.execute()
    assert len(result.outputs[node]["text"]) == 2
    assert len(result.outputs[answer[0]]["text"]) == 2


@row(AREA, "an answer as a prompt", "the image equals that of the same words typed into OvisU1TextEncode")
def answer_as_prompt(lab: Lab) -> None:
    bench = lab.bench()
    answer = understand(bench)
    (words,) = shown(lab, bench, answer)
    linked = lab.bench()
    positive, _ = linked.encode(understand(linked))
    typed = lab.bench()
    same(
        linked.sampled(linked.ksampler(positive=positive)),
        typed.sampled(typed.ksampler(positive=typed.encode(words)[0])),
    )


@row(AREA, "TextGenerate", "core's node generates the same text as OvisU1Understand")
def text_generate(lab: Lab) -> None:
    bench = lab.bench()
    given = {"clip": bench.clip, "prompt": "Hello", "max_length": 12, "sampling_mode": "off"}
    one, two = shown(lab, bench, bench.node("TextGenerate", **given), understand(bench))
    assert one.strip() == two
