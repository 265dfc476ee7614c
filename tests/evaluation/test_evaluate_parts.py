"""Readers, settings, scorers and the run's folder of benchmarks/evaluation, without a model."""

from __future__ import annotations

import io
import json
import re
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from console import UserError
from evaluation import schedule, scores, shapes
from evaluation.benchmarks import BENCHMARKS
from evaluation.contact_sheet import PAGE, contact_sheet
from evaluation.folder import RunFolder
from evaluation.record import SEED_BYTES, Record, read, seeds, task_of
from evaluation.settings import settings_of, size
from evaluation.shapes import world
from helpers import benchmark_data

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
    (record,) = BENCHMARKS["gedit"].records(benchmark_data.write_lines(tmp_path / "g.jsonl", rows))
    assert record.images == (tmp_path / "i",)
    assert record.files == ("ovis-u1/fullset/ps_human/en/k.png",)


def test_vqa_reads_images_by_reference_and_in_lists(tmp_path: Path) -> None:
    first, rotated, free = BENCHMARKS["vqa"].records(benchmark_data.vqa(tmp_path / "v"))
    assert first.images == rotated.images
    assert len(free.images) == 2
    assert (first.task, free.task) == ("choice", "question")
    assert first.prompt.split("\n")[:4] == ["Look.", "Which colour?", "A. red", "B. olive"]
    assert read(first.images[0]) == benchmark_data.picture("olive", (300, 200))
    assert "image" not in first.row


def test_vqa_reads_paths(tmp_path: Path) -> None:
    rows = [
        {"question": "What?", "image": "a.png", "answer": ["x", "y"]},
        {"question": "?", "image": ["a", "b"], "A": 1},
    ]
    free, choice = BENCHMARKS["vqa"].records(benchmark_data.write_lines(tmp_path / "q.jsonl", rows))
    assert free.images == (tmp_path / "a.png",)
    assert (choice.id, choice.choices, len(choice.images)) == ("1", ("A",), 2)


# Of the data as a whole, or of its only record: no run begins.
WRONG: dict[str, tuple[str, str, str]] = {
    "not there": ("geneval", "", "is not there"),
    "no JSON": ("geneval", "{", "line 1: this is not JSON"),
    "no object": ("geneval", "[]", "not a JSON object"),
    "no prompt": ("geneval", '{"tag": "x"}', "no text 'prompt'"),
    "no UTF-8": ("geneval", '{"tag": "x", "prompt": "\udce9"}', "not text in UTF-8"),
    "no prompts": ("dpg", "x", "holds no .txt"),
    "no records": ("imgedit", "[]", "not a JSON object of records"),
    "no image id": ("imgedit", '{"1": {"prompt": "x"}}', "no text 'id'"),
    "a long image id": ("imgedit", f'{{"1": {{"prompt": "x", "id": "{"x" * 300}"}}}}', "cannot be looked for"),
    "a key that is a path": ("imgedit", '{"../1": {"prompt": "x", "id": "x"}}', "cannot be the name"),
    "a record that is none": ("imgedit", '{"1": 5}', "record '1': this is not a JSON object"),
    "no parquet": ("gedit", "x", "no .parquet"),
    "no questions": ("vqa", "x", "neither .tsv nor .jsonl"),
    "an unknown task": ("jobs", '{"task": "sing", "prompt": "x"}', "'sing' is none of"),
    "a task that is a list": ("jobs", '{"task": ["edit"], "prompt": "x"}', "task .'edit'. is none of"),
    "an unknown key": ("jobs", '{"prompt": "x", "stepz": 1}', "stepz is nothing that image knows"),
    "an id that is a path": ("jobs", '{"prompt": "x", "id": "a/b"}', "cannot be the name"),
    "an id that is a list": ("jobs", '{"prompt": "x", "id": ["a"]}', "cannot be the name"),
    "an id that is too long": ("jobs", f'{{"prompt": "x", "id": "{"é" * 121}"}}', "too long for the name of a file"),
    "half a character": ("jobs", '{"prompt": "\\ud83d"}', "half a character"),
    "half a character in an id": ("jobs", '{"prompt": "x", "id": "\\ud83d"}', "half a character"),
    "a deep nest": ("jobs", '{"prompt": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deep"),
    "a nest": ("geneval", '{"prompt": "x", "tag": "x", "more": ' + "[" * 900 + "]" * 900 + "}", "nested too deep"),
    "an edit of nothing": ("jobs", '{"task": "edit", "prompt": "x"}', "edit needs one image and has 0"),
    "a NUL": ("jobs", '{"task": "edit", "prompt": "x", "image": "a\\u0000b"}', "cannot be the path of a picture"),
    "a size": ("jobs", '{"prompt": "x", "size": "100x64"}', "multiples of 16"),
    "a size of an edit": ("jobs", '{"task": "edit", "prompt": "x", "image": "a", "size": "64x64"}', "edit has no size"),
    "a seed": ("jobs", '{"prompt": "x", "seed": -1}', "seed -1 is not a whole number"),
    "a setting that is a link": ("jobs", '{"prompt": "x", "steps": ["1", 0]}', "steps .'1', 0. is not a whole number"),
    "a setting that is no number": ("jobs", '{"prompt": "x", "txt_cfg": NaN}', "txt_cfg nan is not a number"),
    "no choices": ("jobs", '{"task": "choice", "image": "a", "prompt": "x"}', "choices is a list of words"),
    "choices": ("jobs", '{"task": "choice", "image": "a", "prompt": "x", "choices": 5}', "choices is a list of words"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_gets_one_sentence(tmp_path: Path, case: str) -> None:
    name, text, says = WRONG[case]
    file = tmp_path / "data"
    if text:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=says) as caught:
        BENCHMARKS[name].records(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_the_others_go_on(tmp_path: Path) -> None:
    sound = '{"prompt": "x", "size": "64x64"}'
    file = tmp_path / "jobs.jsonl"
    file.write_text(f"\ufeff{sound}\n{{\n{sound}\n", encoding="utf-8")
    first, wrong, last = BENCHMARKS["jobs"].records(file)
    assert (first.id, last.id) == ("00000", "00002")
    assert wrong.id == f"{file}, line 2"
    assert "not JSON" in wrong.wrong


def test_dpg_prompts_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffgood".encode())
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").mkdir()
    good, latin, folder = BENCHMARKS["dpg"].records(tmp_path)
    assert good.prompt == "good"
    assert (latin.id, folder.id) == (str(tmp_path / "b.txt"), str(tmp_path / "c.txt"))
    assert "not text in UTF-8" in latin.wrong
    assert "cannot be read" in folder.wrong


def test_damage_in_parquet_is_one_failure(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    whole = benchmark_data.gedit(tmp_path / "data") / "train-00000-of-00001.parquet"
    damaged = whole.with_name("train-00001-of-00001.parquet")
    data = whole.read_bytes()
    damaged.write_bytes(data[:4] + bytes(200) + data[204:])
    assert parquet.ParquetFile(damaged).metadata.num_rows == 3, "it cannot even be opened"
    *good, wrong = BENCHMARKS["gedit"].records(whole.parent)
    assert [record.id for record in good] == ["color_alter/a1", "ps_human/b2"]
    assert wrong.id == f"{damaged}, from record 1"
    assert "it is damaged" in wrong.wrong
    assert "\n" not in wrong.wrong


def test_rows_of_a_tsv_are_wrong_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "q.tsv"
    image = "aGVsbG8=" * 20
    rows = [f"1\tgood\t{image}", f"2\tcaf\udce9\t{image}", f"3\ta\t{image}\tmore", "4\tlost\t99"]
    rows.append(f"5\tlist\t['{image}'")
    file.write_bytes("\n".join(["index\tquestion\timage", *rows]).encode(errors="surrogateescape"))
    good, *wrong = BENCHMARKS["vqa"].records(file)
    assert good.id == "1"
    assert [record.id for record in wrong] == [f"{file}, line {line}" for line in range(3, 7)]
    for record, said in zip(
        wrong, ["UTF-8", "more columns", "a row which is not there", "list of images"], strict=True
    ):
        assert said in record.wrong


def test_columns_are_named(tmp_path: Path) -> None:
    file = tmp_path / "q.tsv"
    file.write_text("index\ttext\n1\tx\n", encoding="utf-8")
    with pytest.raises(UserError, match="its columns are index, text; it needs"):
        BENCHMARKS["vqa"].records(file)


def test_two_records_never_share_a_name(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "id": "Cow"}, {"prompt": "x", "id": "cow"}]
    with pytest.raises(UserError, match=r"'Cow' and 'cow' would both write images/cow.png"):
        BENCHMARKS["jobs"].records(benchmark_data.write_lines(tmp_path / "a.jsonl", rows))
    with pytest.raises(UserError, match="two records 'cow'"):
        BENCHMARKS["jobs"].records(benchmark_data.write_lines(tmp_path / "b.jsonl", [rows[1], rows[1]]))


def test_settings_of_the_command_line() -> None:
    settings = settings_of("jobs", BENCHMARKS["jobs"].tasks, {"steps": 3, "txt_cfg": 2.0})
    assert [settings[task]["steps"] for task in ("image", "edit")] == [3, 3]
    with pytest.raises(UserError, match="--img-cfg: geneval has no such setting"):
        settings_of("geneval", ("image",), {"img_cfg": 2.0})
    with pytest.raises(UserError, match="--txt-cfg: txt_cfg nan is not a number"):
        settings_of("geneval", ("image",), {"txt_cfg": float("nan")})
    with pytest.raises(UserError, match="--steps: steps 0 is less than 1"):
        settings_of("geneval", ("image",), {"steps": 0})


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


def test_a_folder_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".partial").write_bytes(b"of a run that was killed as it began")
    with RunFolder(out, RUN) as folder:
        folder.keep({"id": "a", "seconds": 1.5}, {"images/a.png": b"png", "images/a.txt": b"x"})
        folder.keep({"id": "b", "seconds": 0, "error": "lost"}, {})
        with pytest.raises(UserError, match="another run is writing"), RunFolder(out, RUN):
            pass
    with (out / "results.jsonl").open("ab") as log:
        log.write(b'{"id": "c", "sec')
    with RunFolder(out, json.loads(json.dumps(RUN))) as folder:
        assert list(folder.results) == ["a", "b"]
        folder.keep({"id": "c", "seconds": 0, "answer": "yes"}, {})
        folder.need_only({"a", "c"})
        with pytest.raises(UserError, match="holds record 'c', which --data has not"):
            folder.need_only({"a"})
    assert [json.loads(line)["id"] for line in (out / "results.jsonl").read_text("utf-8").splitlines()] == [
        "a",
        "b",
        "c",
    ]
    assert not (out / ".partial").exists()


def test_a_record_that_the_disk_does_not_take_leaves_no_file(tmp_path: Path) -> None:
    with RunFolder(tmp_path, RUN) as folder:
        (tmp_path / "images" / "b.png").mkdir(parents=True)
        with pytest.raises(UserError, match=r"b.png cannot be written"):
            folder.keep({"id": "a", "seconds": 0}, {"images/a.png": b"png", "images/b.png": b"png"})
        assert not (tmp_path / "images" / "a.png").exists()
        assert not folder.results


def test_strangers_are_named(tmp_path: Path) -> None:
    with RunFolder(tmp_path, RUN) as folder:
        folder.keep({"id": "a", "seconds": 0}, {"images/a.png": b"png"})
        assert list(folder.strangers()) == []
        (tmp_path / "images" / "deep").mkdir()
        (tmp_path / "images" / "deep" / "stranger.txt").write_bytes(b"")
        assert list(folder.strangers()) == [Path("images/deep/stranger.txt")]


@pytest.mark.parametrize("damage", [b"", b"pn", b"PNG", None])
def test_a_damaged_file_is_not_whole(tmp_path: Path, damage: bytes | None) -> None:
    with RunFolder(tmp_path, RUN) as folder:
        folder.keep({"id": "a", "seconds": 0}, {"images/a.png": b"png"})
        assert folder.is_whole(folder.results["a"])
        file = tmp_path / "images" / "a.png"
        file.unlink()
        if damage is not None:
            file.write_bytes(damage)
        assert not folder.is_whole(folder.results["a"])


@pytest.mark.parametrize("line", [b"\0\0", b"[]", b'{"id": "b"}', b'{"id": "b", "seconds": 1, "files": []}'])
def test_a_damaged_log_is_told(tmp_path: Path, line: bytes) -> None:
    with RunFolder(tmp_path, RUN) as folder:
        folder.keep({"id": "a", "seconds": 0}, {})
    with (tmp_path / "results.jsonl").open("ab") as log:
        log.write(line + b"\n")
    with (
        pytest.raises(UserError, match=r"results.jsonl, line 2 is damaged; delete that line"),
        RunFolder(tmp_path, RUN),
    ):
        pass


@pytest.mark.parametrize("text", [b'{"benchmark"', b"[]", b"\xff"])
def test_a_damaged_run_is_told(tmp_path: Path, text: bytes) -> None:
    with RunFolder(tmp_path, RUN) as folder:
        folder.keep({"id": "a", "seconds": 0}, {})
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(UserError, match=r"run.json is damaged: this is not"), RunFolder(tmp_path, RUN):
        pass


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    other = {"benchmark": "jobs", "settings": {"image": {"steps": 20}}}
    # One that has come to nothing yet may begin anew.
    with RunFolder(tmp_path / "out", other):
        pass
    with RunFolder(tmp_path / "out", RUN) as folder:
        folder.keep({"id": "a", "seconds": 0}, {})
    with pytest.raises(UserError, match=r"settings.image.steps is 20 and was 50"), RunFolder(tmp_path / "out", other):
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(b"")
    with pytest.raises(UserError, match="is not empty and holds no run"), RunFolder(tmp_path / "photos", RUN):
        pass


def test_what_was_asked_is_told_from_what_is(tmp_path: Path) -> None:
    settings = settings_of("jobs", BENCHMARKS["jobs"].tasks, {})
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    record = Record("a", "edit", "x", (picture,), ("images/a.png",), {"images/b.png": b"two"})
    asked = task_of(record, settings, 0).asked()
    assert task_of(replace(record, row={"answer": "A"}), settings, 0).asked() == asked
    picture.write_bytes(b"two")
    others = [task_of(record, settings, 0)]
    picture.write_bytes(b"one")
    others += [task_of(replace(record, prompt="y"), settings, 0), task_of(record, settings, 1)]
    others += [task_of(replace(record, beside={"images/b.png": b"three"}), settings, 0)]
    others += [task_of(replace(record, settings={"steps": 3}), settings, 0)]
    assert len({asked, *(task.asked() for task in others)}) == 6


def test_many_records_make_several_pages(tmp_path: Path) -> None:
    count = PAGE + 1
    records = [Record(str(i), "question", f"<b>{i}</b>", (benchmark_data.picture(),)) for i in range(count)]
    results = {record.id: {"id": record.id, "seconds": 0.1, "answer": "a & b", "files": {}} for record in records}
    pages = dict(contact_sheet(tmp_path, "Title", "told", records, results))
    assert list(pages) == ["index.html", "index-2.html"]
    assert [page.count("<article>") for page in pages.values()] == [PAGE, 1]
    assert "&lt;b&gt;0&lt;/b&gt;" in pages["index.html"]
    assert 'href="index-2.html"' in pages["index.html"]
    assert all("<script" not in page and 'src="http' not in page for page in pages.values())


def test_links_of_a_page_are_quoted(tmp_path: Path) -> None:
    name = "images/a b#1%20'<\">?.png"
    (tmp_path / "images").mkdir()
    try:
        (tmp_path / name).write_bytes(benchmark_data.picture())
    except OSError:
        pytest.skip("this system has no such names")
    results = {"x": {"id": "x", "seconds": 0.1, "files": {name: ""}}}
    ((_, page),) = contact_sheet(tmp_path, "Title", "", [Record("x", "image", "", files=(name,))], results)
    (link,) = re.findall('href="([^"]*)"', page)
    assert not set(" #?<>'") & set(link)
    assert urllib.parse.unquote(link) == name


def shapes_answers(records: list[Record], folder: Path) -> dict[str, dict[str, Any]]:
    """What a model without fault would give."""
    results = {}
    for record in records:
        results[record.id] = {"files": dict.fromkeys(record.files, ""), "answer": record.row.get("answer")}
        if record.row["task"] == "judge":
            results[record.id]["answer"] = f"1. {record.row['answer']}: 0.9\n2. image 9: 0.1"
        for name in record.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(shapes.drawn(record.row["scene"]))
    return results


def test_shapes_are_the_same_cases_each_time() -> None:
    first, second = (BENCHMARKS["shapes"].records(None) for _ in range(2))
    assert len(first) == len(shapes.TASKS) * shapes.CASES
    assert [(r.id, r.prompt, r.images) for r in first] == [(r.id, r.prompt, r.images) for r in second]
    assert [r.row["task"] for r in first[: len(shapes.TASKS)]] == list(shapes.TASKS)
    assert all(world.is_held_out(r.row["scene"]) for r in first if r.row["task"] == "paint")


def test_shapes_scores_what_is_right_and_what_is_wrong(tmp_path: Path) -> None:
    records = BENCHMARKS["shapes"].records(None)[: 14 * len(shapes.TASKS)]
    right = shapes_answers(records, tmp_path)
    judged = shapes.verdicts(tmp_path, records, right)
    assert [name for name, (fits, _) in judged.items() if not fits] == []
    scored = shapes.scores(records, judged)
    assert scored["by_task"]["edit"] == {"right": 1.0, "cases": 14}
    assert set(scored["by_kind"]) >= {"edit background", "masked shape", "ask side", "ask count"}

    wrong = {}
    for record in records:
        said = record.row.get("answer") or ""
        wrong[record.id] = {
            **right[record.id],
            "answer": f"1. image 9: 0.9\n2. {said}: 0.1" if "image" in said else "so",
        }
        if record.files:
            scene = record.row["scene"]
            other = next(kind for kind in world.KINDS if kind != scene.shape.kind)
            (tmp_path / record.files[0]).write_bytes(shapes.drawn(scene.change(kind=other)))
    judged = shapes.verdicts(tmp_path, records, wrong)
    assert [name for name, (fits, _) in judged.items() if fits] == []
    failed = {record.id: {"error": "it broke"} for record in records}
    assert not any(fits for fits, _ in shapes.verdicts(tmp_path, records, failed).values())


def test_shapes_notices_what_an_edit_should_have_kept(tmp_path: Path) -> None:
    records = [r for r in BENCHMARKS["shapes"].records(None)[:70] if r.row["task"] in ("edit", "masked")]
    results = shapes_answers(records, tmp_path)
    for record in records:
        scene = record.row["scene"]
        moved = scene.change(x=scene.shape.x + 12)
        (tmp_path / record.files[0]).write_bytes(shapes.drawn(moved))
    assert {said for _, said in shapes.verdicts(tmp_path, records, results).values()} == {
        "wrong: the shape was moved or has another size"
    }
    masked = [record for record in records if record.row["task"] == "masked"]
    for record in masked:
        picture = Image.open(io.BytesIO(shapes.drawn(record.row["scene"])))
        ground = record.row["scene"].background
        colour = next(rgb for name, rgb in world.COLOURS.items() if name != ground)
        for row, column in record.row["outside"].nonzero().tolist():
            if row % 6 == column % 6 == 0:  # specks, too small to be a shape
                picture.putpixel((column, row), colour)
        picture.save(tmp_path / record.files[0])
    said = {said for _, said in shapes.verdicts(tmp_path, masked, results).values()}
    assert all(text.endswith("of the pixels outside the mask were changed") for text in said), said
