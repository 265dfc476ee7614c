"""The benchmarks by name: how their data is read, and the scorers that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from console import UserError

from .edits import METHOD, gedit, gedit_rows, imgedit, imgedit_rows
from .images import dpg, dpg_rows, geneval, geneval_rows
from .jobs import job, job_rows
from .questions import vqa, vqa_rows
from .record import Record
from .rows import Row
from .settings import REPORT, Settings
from .shapes import SETTINGS, TASKS, shapes, shapes_rows


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    rows     its data's path -> rows, in order
    record   a row -> what it asks; raises ValueError where that cannot be told
    tasks    what it asks for; their settings belong to the run
    score    commands that score its results, with {out} and {width}; empty where there is none
    usual    the settings of its tasks
    of_data  whether it reads data; otherwise it makes its cases, and runs the built-in model if no other is named
    each     how many records --limit counts as one
    """

    rows: Callable[[Path | None], Iterator[Row]]
    record: Callable[[Row], Record]
    tasks: tuple[str, ...]
    score: str = ""
    usual: Settings = field(default_factory=lambda: REPORT)
    of_data: bool = True
    each: int = 1

    def records(self, data: Path | None) -> list[Record]:
        """All records, also the wrong ones. Raises UserError where the data as a whole is wrong."""
        try:
            records = [self._record(row) for row in self.rows(data)]
        except OSError as error:
            raise UserError(f"--data: {data} cannot be read ({error}); see to it") from error
        if not records:
            raise UserError(f"--data: {data} holds no records of this benchmark; name its own data")
        if all(record.wrong for record in records):
            raise UserError(f"{records[0].id}: {records[0].wrong}")
        _need_apart(data, records)
        return records

    def _record(self, row: Row) -> Record:
        try:
            if row.wrong:
                raise ValueError(row.wrong)
            return self.record(row)
        except ValueError as error:
            # By its place: its id may be what is wrong. Of a path that is not UTF-8 the bytes are spelled out.
            place, wrong = (text.encode(errors="backslashreplace").decode() for text in (row.where, str(error)))
            return Record(place, self.tasks[0], "", wrong=wrong)


def _need_apart(data: Path | None, records: list[Record]) -> None:
    """Raises UserError where two records have one id or would write one file."""
    known: set[str] = set()
    files: dict[str, str] = {}  # a file's name, as systems that ignore case know it -> its record
    for record in records:
        if record.id in known:
            raise UserError(f"--data: {data} has two records {record.id!r}; give each an id of its own")
        known.add(record.id)
        for name in (*record.files, *record.beside):
            other = files.setdefault(name.casefold(), record.id)
            if other != record.id:
                raise UserError(f"--data: records {other!r} and {record.id!r} would both write {name}; rename one")


BENCHMARKS = {
    "geneval": Benchmark(
        geneval_rows,
        geneval,
        ("image",),
        "In a checkout of djghosh13/geneval:\n"
        "  python evaluation/evaluate_images.py {out}/images --outfile {out}/geneval.jsonl --model-path DETECTOR\n"
        "  python evaluation/summary_scores.py {out}/geneval.jsonl",
    ),
    "dpg": Benchmark(
        dpg_rows,
        dpg,
        ("image",),
        "In a checkout of TencentQQGYLab/ELLA:\n  bash dpg_bench/dist_eval.sh {out}/images {width}",
    ),
    "imgedit": Benchmark(
        imgedit_rows,
        imgedit,
        ("edit",),
        "In Benchmark/Basic of a checkout of PKU-YuanGroup/ImgEdit, with a key for GPT-4o:\n"
        "  python basic_bench.py --result_img_folder {out}/images --edit_json basic_edit.json "
        "--origin_img_root IMAGES --prompts_json prompts.json\n"
        "  python step1_get_avgscore.py --result_json {out}/images/result.json "
        "--average_score_json {out}/average.json\n"
        "  python step2_typescore.py --average_score_json {out}/average.json --basic_edit basic_edit.json "
        "--typescore_json {out}/types.json",
    ),
    "gedit": Benchmark(
        gedit_rows,
        gedit,
        ("edit",),
        "In GEdit-Bench of a checkout of stepfun-ai/Step1X-Edit, with a key for GPT-4.1:\n"
        f"  python test_gedit_score.py --model_name {METHOD} --save_path {{out}} --backbone gpt4o\n"
        f"  python calculate_statistics.py --model_name {METHOD} --save_path {{out}} --backbone gpt4o --language en",
    ),
    "vqa": Benchmark(
        vqa_rows,
        vqa,
        ("choice", "question"),
        score="In a checkout of open-compass/VLMEvalKit, for its own scorers of free text:\n"
        "  put {out}/predictions.tsv where its run.py looks for MODEL_DATASET.tsv, then\n"
        "  PRED_FORMAT=tsv python run.py --data DATASET --model MODEL --mode eval --reuse",
    ),
    "jobs": Benchmark(job_rows, job, ("image", "edit", "question", "choice")),
    "shapes": Benchmark(shapes_rows, shapes, tuple(SETTINGS), usual=SETTINGS, of_data=False, each=len(TASKS)),
}
