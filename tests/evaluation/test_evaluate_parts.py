"""Readers, settings, scorers and the run's folder of evaluation/, without a model."""

from __future__ import annotations

import io
import json
import re
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import flat_shapes
import pytest
from PIL import Image

from console import UserError
from helpers import benchmark_data
from outcome import answer_scores, contact_sheet, shapes_scores
from record import REPORT_SETTINGS, Record, read
from run_folder import open_run
from suites import SUITES, image_size

RUN = {"benchmark": "jobs", "settings": {"image": {"steps": 50}}}


def test_seeds_depend_only_on_the_record_and_the_run_seed() -> None:
    record = Record("a", "image", "", samples=4)
    drawn = record.seeds(0)
    assert drawn == Record("a", "image", "other words", samples=4).seeds(0)
    assert len({*drawn, *record.seeds(1), *Record("b", "image", "", samples=4).seeds(0)}) == 12
    assert max(drawn) < 2**53  # larger numbers are rounded in JavaScript
    assert Record("a", "image", "", seed=5, samples=2).seeds(9) == [5, 6]


def test_gedit_reads_only_english_records(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="GEdit-Bench is published as parquet")
    records = SUITES["gedit"].records(benchmark_data.gedit(tmp_path / "g"))
    assert [record.id for record in records] == ["color_alter/a1", "ps_human/b2"]
    assert records[1].files == ("ovis-u1/fullset/ps_human/en/b2.png",)
    assert records[1].images == (benchmark_data.picture("navy"),)


def test_vqa_reads_images_by_reference_and_in_lists(tmp_path: Path) -> None:
    first, rotated, free = SUITES["vqa"].records(benchmark_data.vqa(tmp_path / "v"))
    assert first.images == rotated.images
    assert len(free.images) == 2
    assert (first.task, free.task) == ("choice", "question")
    assert first.prompt.split("\n")[:4] == ["Look.", "Which colour?", "A. red", "B. olive"]
    assert read(first.images[0]) == benchmark_data.picture("olive", (300, 200))
    assert "image" not in first.row


def test_vqa_reads_paths(tmp_path: Path) -> None:
    file = tmp_path / "q.tsv"
    file.write_text("index\tquestion\timage_path\tA\n1\tWhat?\ta.png\t\n2\t?\t['a', 'b']\t1\n", encoding="utf-8")
    free, choice = SUITES["vqa"].records(file)
    assert free.images == (tmp_path / "a.png",)
    assert (choice.id, choice.choices, len(choice.images)) == ("2", ("A",), 2)


# Faults of the data as a whole, or of its only record: no run begins.
WRONG: dict[str, tuple[str, str, str]] = {
    "a missing file": ("geneval", "", "cannot be read .*No such file"),
    "broken JSON": ("geneval", "{", "line 1: it cannot be read .Expecting property name"),
    "a list in place of an object": ("geneval", "[5]", "line 1: expected an object"),
    "no prompt": ("geneval", '{"tag": "x"}', "prompt: expected text, got None"),
    "invalid UTF-8": ("geneval", '{"tag": "x", "prompt": "\udce9"}', "cannot be read"),
    "no prompts": ("dpg", "x", "has no records"),
    "no records": ("imgedit", "[]", "cannot be read"),
    "no image id": ("imgedit", '{"1": {"prompt": "x"}}', "id: expected text, got None"),
    "a key that is a path": ("imgedit", '{"../1": {"prompt": "x", "id": "x"}}', "cannot be the name"),
    "a record that is not an object": ("imgedit", '{"1": 5}', "record .1.: expected an object"),
    "no parquet": ("gedit", "x", "has no records"),
    "no questions": ("vqa", "index\ttext\n1\tx\n", "question: expected text, got None"),
    "an unknown task": ("jobs", '{"task": "sing", "prompt": "x"}', "expected one of image.*, got 'sing'"),
    "an unknown key": ("jobs", '{"prompt": "x", "stepz": 1}', "image: expected only .*, got stepz"),
    "an id that is a path": ("jobs", '{"prompt": "x", "id": "a/b"}', "cannot be the name"),
    "an edit without an image": ("jobs", '{"task": "edit", "prompt": "x"}', "image: expected one for edit, got 0"),
    "a wrong size": ("jobs", '{"prompt": "x", "size": "100x64"}', "multiples of 16"),
    "a size of an edit": (
        "jobs",
        '{"task": "edit", "prompt": "x", "image": "a", "size": "64x64"}',
        "edit: expected only .*, got size",
    ),
    "choices that are not a list": (
        "jobs",
        '{"task": "choice", "image": "a", "prompt": "x", "choices": 5}',
        "choices: expected a list of words, got 5",
    ),
    "missing choices": ("jobs", '{"task": "choice", "image": "a", "prompt": "x"}', "choices: expected a list of words"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_for_unusable_data_are_one_sentence(tmp_path: Path, case: str) -> None:
    name, text, says = WRONG[case]
    file = tmp_path / "data"
    if text:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=says) as caught:
        SUITES[name].records(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_one_wrong_row_does_not_affect_the_others(tmp_path: Path) -> None:
    sound = '{"prompt": "x", "size": "64x64"}'
    file = tmp_path / "jobs.jsonl"
    file.write_text(f"\ufeff{sound}\n{{\n{sound}\n", encoding="utf-8")
    first, wrong, last = SUITES["jobs"].records(file)
    assert (first.id, last.id) == ("00000", "00002")
    assert wrong.id == f"{file}, line 2"
    assert "Expecting property name" in wrong.error


def test_unreadable_dpg_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffgood".encode())
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").mkdir()
    good, latin, folder = SUITES["dpg"].records(tmp_path)
    assert good.prompt == "good"
    assert (latin.id, folder.id) == (str(tmp_path / "b.txt"), str(tmp_path / "c.txt"))
    assert "codec can't decode" in latin.error
    assert "Is a directory" in folder.error


def test_each_wrong_row_of_a_tsv_is_its_own_error(tmp_path: Path) -> None:
    file = tmp_path / "q.tsv"
    image = "aGVsbG8=" * 20
    rows = [f"1\tgood\t{image}", f"2\ta\t{image}\tmore", "3\tlost\t99", f"4\tlist\t['{image}'"]
    file.write_text("\n".join(["index\tquestion\timage", *rows]), encoding="utf-8")
    good, *wrong = SUITES["vqa"].records(file)
    assert good.id == "1"
    assert [record.id for record in wrong] == [f"{file}, line {line}" for line in range(3, 6)]
    for record, said in zip(wrong, ["more columns", "the index of a row with one", "never closed"], strict=True):
        assert said in record.error


def test_error_for_records_with_the_same_name(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "id": "Cow"}, {"prompt": "x", "id": "cow"}]
    with pytest.raises(UserError, match=r"'Cow' and 'cow' have the same name"):
        SUITES["jobs"].records(benchmark_data.write_lines(tmp_path / "a.jsonl", rows))
    with pytest.raises(UserError, match="'cow' and 'cow' have the same name"):
        SUITES["jobs"].records(benchmark_data.write_lines(tmp_path / "b.jsonl", [rows[1], rows[1]]))


def test_image_size() -> None:
    assert image_size("1024x768") == {"width": 1024, "height": 768}
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        image_size("0x16")


def test_answers_are_scored() -> None:
    keys = {"1": "A", "1000001": "B", "2": "B", "3": "cat", "4": "C", "5": "", "6": "C"}
    records = [Record(index, "choice", "", row={"index": index, "answer": key}) for index, key in keys.items()]
    said = {"1": "A", "1000001": "A", "2": "B", "3": " Cat.", "5": "A", "6": "C"}
    results: dict[str, dict[str, Any]] = {index: {"answer": answer} for index, answer in said.items()}
    results["4"] = {"error": "lost"}
    # 1 is wrong in one of its rotations; 2, 3 and 6 are right; 4 failed; 5 has no key.
    assert answer_scores(records, results) == {"answers": {"cases": 5, "right": 0.6}}
    assert answer_scores(records[5:6], results) == {}


def test_run_folder_resumes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".partial").write_bytes(b"of a run that was killed as it began")
    with open_run(out, RUN) as folder:
        folder.keep({"id": "a", "seconds": 1.5}, {"images/a.png": b"png", "images/a.txt": b"x"})
        folder.keep({"id": "b", "seconds": 0, "error": "lost"}, {})
        with pytest.raises(UserError, match="another run is writing"), open_run(out, RUN):
            pass
    with (out / "results.jsonl").open("ab") as log:
        log.write(b'{"id": "c", "sec')
    with open_run(out, json.loads(json.dumps(RUN))) as folder:
        assert list(folder.results) == ["a", "b"]
        folder.keep({"id": "c", "seconds": 0, "answer": "yes"}, {})
        folder.need_only({"a", "c"})
        with pytest.raises(UserError, match=r"record 'c' in .* is not in --data"):
            folder.need_only({"a"})
    assert [json.loads(line)["id"] for line in (out / "results.jsonl").read_text("utf-8").splitlines()] == [
        "a",
        "b",
        "c",
    ]
    assert not (out / ".partial").exists()


@pytest.mark.parametrize("damage", [b"", b"pn", b"PNG", None])
def test_damaged_files_are_detected(tmp_path: Path, damage: bytes | None) -> None:
    with open_run(tmp_path, RUN) as folder:
        folder.keep({"id": "a", "seconds": 0}, {"images/a.png": b"png"})
        assert folder.is_whole(folder.results["a"])
        file = tmp_path / "images" / "a.png"
        file.unlink()
        if damage is not None:
            file.write_bytes(damage)
        assert not folder.is_whole(folder.results["a"])


def test_error_for_a_folder_of_another_run(tmp_path: Path) -> None:
    other = {"benchmark": "jobs", "settings": {"image": {"steps": 20}}}
    # A run without results may start again with other settings.
    with open_run(tmp_path / "out", other):
        pass
    with open_run(tmp_path / "out", RUN) as folder:
        folder.keep({"id": "a", "seconds": 0}, {})
    with pytest.raises(UserError, match=r"settings.image.steps is 20 and was 50"), open_run(tmp_path / "out", other):
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"is not empty and has no run\.json"), open_run(tmp_path / "photos", RUN):
        pass


def test_hash_of_a_record_changes_with_its_inputs(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    record = Record("a", "edit", "x", (picture,), ("images/a.png",), {"images/b.png": b"two"})
    expected = record.load(REPORT_SETTINGS, 0).input_sha256
    assert replace(record, row={"answer": "A"}).load(REPORT_SETTINGS, 0).input_sha256 == expected
    picture.write_bytes(b"two")
    others = [record.load(REPORT_SETTINGS, 0)]
    picture.write_bytes(b"one")
    others += [replace(record, prompt="y").load(REPORT_SETTINGS, 0), record.load(REPORT_SETTINGS, 1)]
    others += [replace(record, extra_files={"images/b.png": b"three"}).load(REPORT_SETTINGS, 0)]
    others += [replace(record, settings={"steps": 3}).load(REPORT_SETTINGS, 0)]
    assert len({expected, *(task.input_sha256 for task in others)}) == 6


def test_contact_sheet_escapes_texts_and_links(tmp_path: Path) -> None:
    name = "images/a b#1%20'<\">?.png"
    record = Record("x", "edit", "<b>0</b>", (benchmark_data.picture(), b"damaged"), (name,))
    results = {"x": {"id": "x", "seconds": 0.1, "answer": "a & b", "files": {name: ""}}}
    page = contact_sheet("made of", [record, Record("y", "image", "not made")], results, {})
    assert page.count("<article>") == 1
    assert "&lt;b&gt;0&lt;/b&gt;" in page
    assert "a &amp; b" in page
    *_, link = re.findall('href="([^"]*)"', page)
    assert not set(" #?<>'") & set(link)
    assert urllib.parse.unquote(link) == name
    assert "<script" not in page
    assert 'src="http' not in page


def drawn(scene: flat_shapes.Scene) -> bytes:
    """A scene as a PNG file."""
    return next(iter(cases.source_files(cases.Case("edit", "", "", (scene,)))))


def shapes_answers(records: list[Record], folder: Path) -> dict[str, dict[str, Any]]:
    """The results of a perfect model."""
    results = {}
    for record in records:
        case = record.row["case"]
        results[record.id] = {"files": dict.fromkeys(record.files, ""), "answer": case.answer}
        if case.task == "judge":
            results[record.id]["answer"] = f"1. image {case.answer}: 0.9\n2. image 9: 0.1"
        for name in record.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(drawn(case.scene))
    return results


def test_shapes_are_the_same_cases_each_time() -> None:
    first, second = (SUITES["shapes"].records(None) for _ in range(2))
    assert len(first) == len(cases.TASKS) * cases.COUNT
    assert set(SUITES["shapes"].settings) == set(cases.TASKS)
    assert [(r.id, r.prompt, r.images) for r in first] == [(r.id, r.prompt, r.images) for r in second]
    assert [r.row["case"].task for r in first[: len(cases.TASKS)]] == list(cases.TASKS)
    for task in ("paint", "ask", "describe", "chat"):
        for number in range(cases.COUNT):
            case = cases.make_case(task, number)
            assert flat_shapes.is_held_out(case.scene or case.sources[0])
    assert len({r.prompt + str(r.images) for r in first}) > 0.95 * len(first)


def test_shapes_scores_correct_and_wrong_results(tmp_path: Path) -> None:
    records = SUITES["shapes"].records(None)[: 14 * len(cases.TASKS)]
    right = shapes_answers(records, tmp_path)
    verdicts, scored = shapes_scores(tmp_path, records, right)
    assert [name for name, (fits, _) in verdicts.items() if not fits] == []
    assert scored["edit"] == {"right": 1.0, "cases": 14}
    assert set(scored) >= {"edit background", "masked shape", "ask side", "ask count", "chat", "judge", "describe"}

    wrong = {}
    for record in records:
        case = record.row["case"]
        said = f"1. image 9: 0.9\n2. image {case.answer}: 0.1" if case.task == "judge" else "so"
        wrong[record.id] = {**right[record.id], "answer": said}
        if case.scene:
            other = next(kind for kind in flat_shapes.KINDS if kind != case.scene.shape.kind)
            (tmp_path / record.files[0]).write_bytes(drawn(case.scene.change(kind=other)))
    verdicts, _ = shapes_scores(tmp_path, records, wrong)
    assert [name for name, (fits, _) in verdicts.items() if fits] == []
    failed = {record.id: {"error": "it broke"} for record in records}
    assert not any(share["right"] for share in shapes_scores(tmp_path, records, failed)[1].values())


def test_shapes_detects_changes_outside_the_edit(tmp_path: Path) -> None:
    records = [r for r in SUITES["shapes"].records(None)[:70] if r.row["case"].task in ("edit", "masked")]
    results = shapes_answers(records, tmp_path)
    for record in records:
        scene = record.row["case"].scene
        (tmp_path / record.files[0]).write_bytes(drawn(scene.change(x=scene.shape.x + 12)))
    assert {said for _, said in shapes_scores(tmp_path, records, results)[0].values()} == {
        "wrong: the shape was moved or has another size"
    }
    masked = [record for record in records if record.row["case"].task == "masked"]
    for record in masked:
        case = record.row["case"]
        picture = Image.open(io.BytesIO(drawn(case.scene)))
        colour = next(rgb for name, rgb in flat_shapes.COLOURS.items() if name != case.scene.background)
        for row, column in cases.outside_mask(case).nonzero().tolist():
            if row % 6 == column % 6 == 0:  # specks, too small to be a shape
                picture.putpixel((column, row), colour)
        picture.save(tmp_path / record.files[0])
    said = {said for _, said in shapes_scores(tmp_path, masked, results)[0].values()}
    assert all(text.endswith("of the pixels outside the mask were changed") for text in said), said
