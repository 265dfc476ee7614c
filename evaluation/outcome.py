"""The outcome of a run: the scores that need no other model, and a page that shows the records."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from record import Record, Source, read

ROTATED = 1_000_000  # MMBench's indices from here on repeat a question with its options in another order
STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif } img { max-width: 49%; max-height: 16rem }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)) }
article { border: 1px solid #8886; border-radius: .5rem; padding: .7rem } p { overflow-wrap: anywhere }
"""

Results = Mapping[str, Mapping[str, Any]]
Verdicts = Mapping[str, tuple[bool, str]]
Scores = dict[str, dict[str, float]]


def answer_scores(records: Iterable[Record], results: Results) -> Scores:
    """The share of right answers, ignoring case, spaces and a full stop; {} if no question has a key.

    A question that is repeated with its options rotated counts once, and only if every rotation is right.
    """
    right: dict[str, bool] = {}
    for record in records:
        if record.id in results and (key := record.row.get("answer")):
            question = str(int(record.id) % ROTATED) if record.id.isdecimal() else record.id
            fits = _plain(results[record.id].get("answer", "")) == _plain(key)
            right[question] = right.get(question, True) and fits
    return {"answers": {"right": sum(right.values()) / len(right), "cases": len(right)}} if right else {}


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").strip()


def predictions(records: Iterable[Record], results: Results) -> str:
    """The data's rows without images, and the answers, in VLMEvalKit's format of predictions (TSV)."""
    rows = [{**r.row, "prediction": results[r.id].get("answer", "")} for r in records if r.row and r.id in results]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, columns, delimiter="\t", quoting=csv.QUOTE_ALL, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()


def shapes_scores(folder: Path, records: Iterable[Record], results: Results) -> tuple[Verdicts, Scores]:
    """For the small model's cases: whether each is right, with a sentence, and shares by task and kind."""
    import cases

    verdicts = {}
    for record in (record for record in records if record.id in results):
        result, case = results[record.id], record.row["case"]
        if "error" in result:
            verdicts[record.id] = False, "failed"
        elif record.files:
            picture = cases.from_png((folder / record.files[0]).read_bytes())
            verdicts[record.id] = cases.picture_verdict(case, picture)
        else:  # a ranking begins with "1. image 3: 0.9"
            answer = result["answer"] if case.task != "judge" else result["answer"].split("image ")[1].split(":")[0]
            verdicts[record.id] = cases.answer_verdict(case, answer)
    return verdicts, cases.shares((r.row["case"], verdicts[r.id][0]) for r in records if r.id in verdicts)


def contact_sheet(made_of: str, records: Iterable[Record], results: Results, verdicts: Verdicts) -> str:
    """A page that shows inputs and results; the results are loaded from the run's folder."""
    cards = "".join(_card(r, results[r.id], verdicts.get(r.id)) for r in records if r.id in results)
    head = f'<meta charset="utf-8"><title>Ovis-U1, an evaluation</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}<p>{escape(made_of)}</p><main>{cards}</main></html>'


def _card(record: Record, result: Mapping[str, Any], verdict: tuple[bool, str] | None) -> str:
    images = [*map(_thumbnail, record.images), *(quote(name) for name in record.files if name in result["files"])]
    shown = "".join(f'<a href="{image}"><img loading="lazy" src="{image}" alt=""></a>' for image in images)
    answer, key = result.get("answer"), record.row.get("answer")
    share = f" ({result['probabilities'][answer]:.0%})" if "probabilities" in result else ""
    lines = [record.prompt, result.get("error"), answer and f"{answer}{share}{f', key {key}' if key else ''}"]
    lines += [verdict and verdict[1], f"{record.id}, {result['seconds']:.1f} s"]
    return f"<article>{shown}{''.join(f'<p>{escape(line)}</p>' for line in lines if line)}</article>"


def _thumbnail(source: Source) -> str:
    """An input picture as a data URL of a small JPEG; empty if it is damaged."""
    try:
        image = Image.open(io.BytesIO(read(source))).convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return ""
    image.thumbnail((320, 320))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
