"""What can be scored without another model: answers."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from .record import Record

ROTATED = 1_000_000  # MMBench's indices from here on ask the same with its options in another order
CATEGORY = "category"


def answers(records: Iterable[Record], results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Share of right answers among those that have a key, overall and by category; {} without keys.

    A choice is right when its letter is, free text when it is the key but for case, blanks and a full stop. Where a
    question is asked with its options rotated, it counts once, and is right when each of its rotations is. A record
    that failed is wrong.
    """
    right: dict[str, bool] = {}
    category: dict[str, str] = {}
    for record in records:
        keys = record.row.get("answer")
        if record.id not in results or keys in (None, ""):
            continue
        said = str(results[record.id].get("answer", ""))
        fits = bool(said) and any(
            plain(said) == plain(str(key)) for key in (keys if isinstance(keys, list) else [keys])
        )
        question = _question(record.id)
        right[question] = right.get(question, True) and fits
        category.setdefault(question, str(record.row.get(CATEGORY) or ""))
    if not right:
        return {}
    by: dict[str, list[bool]] = defaultdict(list)
    for question, fits in right.items():
        by[category[question]].append(fits)
    groups = {name: sum(fits) / len(fits) for name, fits in sorted(by.items()) if name}
    return {"questions": len(right), "right": sum(right.values()) / len(right), "by_category": groups}


def plain(text: str) -> str:
    """Without case, blanks around and between, and a full stop."""
    return " ".join(text.lower().split()).removesuffix(".").strip()


def _question(index: str) -> str:
    return str(int(index) % ROTATED) if index.isdecimal() else index


def predictions(records: Iterable[Record], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of the data without images, and what was answered, as VLMEvalKit keeps predictions (TSV)."""
    rows = [
        {**record.row, "prediction": results[record.id].get("answer", "")}
        for record in records
        if record.row and record.id in results
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, columns, delimiter="\t", quoting=csv.QUOTE_ALL, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()
