"""Readers, settings, scorers and the run's folder of benchmarks/evaluation, without a model."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import benchmark_data
from evaluation import schedule, scores
from evaluation.edits import gedit, imgedit
from evaluation.folder import RunFolder
from evaluation.images import dpg, geneval
from evaluation.jobs import jobs, size
from evaluation.questions import vqa
from evaluation.record import SEED_BYTES, Made, Record, seeds
from evaluation.sheet import PAGE, write_sheet
from workspace import UserError

RUN = {"benchmark": "jobs", "settings": {"image": {"steps": 50}}}


def test_seeds_follow_from_the_record_alone() -> None:
    record = Record("a", "image", "", samples=4)
    drawn = seeds(record, 0)
    assert drawn == seeds(Record("a", "image", "other words", samples=4), 0)
    assert len({*drawn, *seeds(record, 1), *seeds(Record("b", "image", "", samples=4), 0)}) == 12
    assert max(drawn) < 256**SEED_BYTES
    assert seeds(Record("a", "image", "", seed=5, samples=2), 9) == (5, 6)


def test_gedit_takes_english_records(tmp_path: Path) -> None:
    rows = [
        {
            "task_type": "ps_human",
            "key": "k",
            "instruction": "x",
            "instruction_language": language,
            "input_image_raw": "i",
        }
        for language in ("en", "cn")
    ]
    (record,) = gedit(benchmark_data.write_lines(tmp_path / "g.jsonl", rows))
    assert record.images == (tmp_path / "i",)
    assert record.files == ("ovis-u1/fullset/ps_human/en/k.png",)


def test_vqa_reads_images_by_reference_and_in_lists(tmp_path: Path) -> None:
    first, rotated, free = vqa(benchmark_data.vqa(tmp_path / "v"))
    assert first.images == rotated.images
    assert len(free.images) == 2
    assert (first.task, free.task) == ("choice", "question")
    assert first.prompt.split("\n")[:4] == ["Look.", "Which colour?", "A. red", "B. olive"]
    assert base64.b64encode(first.images[0]).decode() not in str(first.row)


def test_vqa_reads_paths(tmp_path: Path) -> None:
    rows = [
        {"question": "What?", "image": "a.png", "answer": ["x", "y"]},
        {"question": "?", "image": ["a", "b"], "A": 1},
    ]
    free, choice = vqa(benchmark_data.write_lines(tmp_path / "q.jsonl", rows))
    assert free.images == (tmp_path / "a.png",)
    assert (choice.id, choice.choices, len(choice.images)) == ("1", ("A",), 2)


WRONG: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "not there": (geneval, "", "is not there"),
    "no JSON": (geneval, "{", "line 1: this is not JSON"),
    "no object": (geneval, "[]", "not a JSON object"),
    "no prompt": (geneval, '{"tag": "x"}', "no text 'prompt'"),
    "no prompts": (dpg, "x", "holds no .txt"),
    "no records": (imgedit, "[]", "not a JSON object of records"),
    "no image id": (imgedit, '{"1": {"prompt": "x"}}', "no text 'id'"),
    "a key that is a path": (imgedit, '{"../1": {"prompt": "x", "id": "x"}}', "cannot be the name"),
    "no parquet": (gedit, "x", "no .parquet"),
    "no questions": (vqa, "x", "neither .tsv nor .jsonl"),
    "an unknown task": (jobs, '{"task": "sing", "prompt": "x"}', "'sing' is none of"),
    "an unknown key": (jobs, '{"prompt": "x", "stepz": 1}', "stepz is nothing that image knows"),
    "an id that is a path": (jobs, '{"prompt": "x", "id": "a/b"}', "cannot be the name"),
    "an edit of nothing": (jobs, '{"task": "edit", "prompt": "x"}', "edit needs one image and has 0"),
    "a size": (jobs, '{"prompt": "x", "size": "100x64"}', "multiples of 16"),
    "a seed": (jobs, '{"prompt": "x", "seed": -1}', "seed -1 is not a whole number"),
    "no choices": (jobs, '{"task": "choice", "image": "a", "prompt": "x"}', "choices is a list of words"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_gets_one_sentence(tmp_path: Path, case: str) -> None:
    reader, text, says = WRONG[case]
    file = tmp_path / "data"
    if text:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says) as caught:
        list(reader(file))
    assert "\n" not in str(caught.value)


def test_columns_are_named(tmp_path: Path) -> None:
    file = tmp_path / "q.tsv"
    file.write_text("index\ttext\n1\tx\n", encoding="utf-8")
    with pytest.raises(UserError, match="its columns are index, text; it needs"):
        list(vqa(file))


def test_sizes() -> None:
    assert size("1024x768") == {"width": 1024, "height": 768}
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        size("0x16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", (1, False, False)), ("4", (4, True, False)), ("ray", (None, True, True)), ("ray:2", (2, True, True))],
)
def test_workers(text: str, expected: tuple[Any, ...]) -> None:
    chosen = schedule.choice(text)
    assert (chosen.count, chosen.ray, chosen.join) == expected


@pytest.mark.parametrize("text", ["0", "-1", "many", "ray:0", "dask:2", ":2", ""])
def test_workers_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number"):
        schedule.choice(text)


def test_answers_are_scored() -> None:
    def record(index: str, answer: Any, category: str) -> Record:
        return Record(index, "choice", "", row={"index": index, "answer": answer, "category": category})

    records = [
        record("1", "A", "x"),
        record("1000001", "B", "x"),
        record("2", "B", "x"),
        record("3", ["a cat", "cat"], "y"),
        record("4", "C", "y"),
        record("5", "", "y"),
        record("6", "C", "y"),
    ]
    said = {"1": "A", "1000001": "A", "2": "B", "3": " A  Cat.", "5": "A", "6": "C"}
    results: dict[str, dict[str, Any]] = {index: {"answer": answer} for index, answer in said.items()}
    results["4"] = {"error": "lost"}
    # 1 is wrong in one of its rotations; 2, 3 and 6 are right; 4 failed; 5 has no key.
    assert scores.answers(records, results) == {"questions": 5, "right": 0.6, "by_category": {"x": 0.5, "y": 2 / 3}}
    assert scores.answers(records[5:6], results) == {}


def test_layout_is_checked(tmp_path: Path) -> None:
    records = [Record(name, "image", "", files=(f"images/{name}.png",)) for name in "abcd"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(benchmark_data.picture())
    (tmp_path / "images" / "b.png").write_bytes(benchmark_data.picture()[:50])
    (tmp_path / "images" / "stranger.txt").write_text("x", encoding="utf-8")
    results: dict[str, dict[str, Any]] = {name: {} for name in "abc"}
    wrong = scores.layout(tmp_path, records, results)
    assert [sentence.split(":")[0] for sentence in wrong] == ["images/b.png", "images/c.png", "images/stranger.txt"]


def test_a_folder_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = Record("a", "image", "", files=("images/a.png",), beside={"images/a.txt": b"x"})
    with RunFolder(out, RUN) as folder:
        assert not folder.is_done(record, failed_too=True)
        folder.keep(record, Made((b"png",), seconds=1.5), (7,))
        folder.keep(Record("b", "image", ""), Made(error="lost"), ())
        with pytest.raises(UserError, match="another run is writing"), RunFolder(out, RUN):
            pass
    with (out / "results.jsonl").open("ab") as log:
        log.write(b'{"id": "c", "sec')
    with RunFolder(out, json.loads(json.dumps(RUN))) as folder:
        assert list(folder.results) == ["a", "b"]
        assert folder.is_done(record, failed_too=True)
        assert folder.is_done(Record("b", "image", ""), failed_too=True)
        assert not folder.is_done(Record("b", "image", ""), failed_too=False)
        folder.keep(Record("c", "question", ""), Made(text="yes"), ())
        (out / "images" / "a.png").unlink()
        assert not folder.is_done(record, failed_too=True)
    assert [json.loads(line)["id"] for line in (out / "results.jsonl").read_text("utf-8").splitlines()] == [
        "a",
        "b",
        "c",
    ]
    assert not (out / ".partial").exists()


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    other = {"benchmark": "jobs", "settings": {"image": {"steps": 20}}}
    # One that has come to nothing yet may begin anew.
    with RunFolder(tmp_path / "out", other):
        pass
    with RunFolder(tmp_path / "out", RUN) as folder:
        folder.keep(Record("a", "question", ""), Made(text="yes"), ())
    with pytest.raises(UserError, match=r"settings.image.steps is 20 and was 50"), RunFolder(tmp_path / "out", other):
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(b"")
    with pytest.raises(UserError, match="is not empty and holds no run"), RunFolder(tmp_path / "photos", RUN):
        pass


def test_many_records_make_several_pages(tmp_path: Path) -> None:
    count = PAGE + 1
    records = [Record(str(i), "question", f"<b>{i}</b>", (benchmark_data.picture(),)) for i in range(count)]
    results = {record.id: {"id": record.id, "seconds": 0.1, "answer": "a & b"} for record in records}
    first = write_sheet(tmp_path, "Title", "told", iter(records), results)
    pages = [first.read_text(encoding="utf-8"), (tmp_path / "index-2.html").read_text(encoding="utf-8")]
    assert [page.count("<article>") for page in pages] == [PAGE, 1]
    assert "&lt;b&gt;0&lt;/b&gt;" in pages[0]
    assert 'href="index-2.html"' in pages[0]
    assert all("<script" not in page and 'src="http' not in page for page in pages)
