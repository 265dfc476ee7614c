"""The benchmarks by name: their readers, and the scorers that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .edits import METHOD, gedit, imgedit
from .images import dpg, geneval
from .jobs import jobs
from .questions import vqa
from .record import Record


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    records  its data's path -> its records, in order
    tasks    what it asks for; their settings belong to the run
    data     patterns of the files that hold its records, where --data is a folder
    score    commands that score its results, with {out} and {width}; empty where there is none
    """

    records: Callable[[Path], Iterator[Record]]
    tasks: tuple[str, ...]
    data: tuple[str, ...] = ()
    score: str = ""


BENCHMARKS = {
    "geneval": Benchmark(
        geneval,
        ("image",),
        ("evaluation_metadata.jsonl",),
        "In a checkout of djghosh13/geneval:\n"
        "  python evaluation/evaluate_images.py {out}/images --outfile {out}/geneval.jsonl --model-path DETECTOR\n"
        "  python evaluation/summary_scores.py {out}/geneval.jsonl",
    ),
    "dpg": Benchmark(
        dpg,
        ("image",),
        ("*.txt", "prompts/*.txt"),
        "In a checkout of TencentQQGYLab/ELLA:\n  bash dpg_bench/dist_eval.sh {out}/images {width}",
    ),
    "imgedit": Benchmark(
        imgedit,
        ("edit",),
        ("basic_edit.json",),
        "In Benchmark/Basic of a checkout of PKU-YuanGroup/ImgEdit, with a key for GPT-4o:\n"
        "  python basic_bench.py --result_img_folder {out}/images --edit_json basic_edit.json "
        "--origin_img_root IMAGES --prompts_json prompts.json\n"
        "  python step1_get_avgscore.py --result_json {out}/images/result.json "
        "--average_score_json {out}/average.json\n"
        "  python step2_typescore.py --average_score_json {out}/average.json --basic_edit basic_edit.json "
        "--typescore_json {out}/types.json",
    ),
    "gedit": Benchmark(
        gedit,
        ("edit",),
        ("**/*.parquet",),
        "In GEdit-Bench of a checkout of stepfun-ai/Step1X-Edit, with a key for GPT-4.1:\n"
        f"  python test_gedit_score.py --model_name {METHOD} --save_path {{out}} --backbone gpt4o\n"
        f"  python calculate_statistics.py --model_name {METHOD} --save_path {{out}} --backbone gpt4o --language en",
    ),
    "vqa": Benchmark(
        vqa,
        ("choice", "question"),
        score="In a checkout of open-compass/VLMEvalKit, for its own scorers of free text:\n"
        "  put {out}/predictions.tsv where its run.py looks for MODEL_DATASET.tsv, then\n"
        "  PRED_FORMAT=tsv python run.py --data DATASET --model MODEL --mode eval --reuse",
    ),
    "jobs": Benchmark(jobs, ("image", "edit", "question", "choice")),
}
