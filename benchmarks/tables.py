"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from measuring import Measured

BASES = ("authors", "generate", "ours")  # a row's ratios are relative to the first of these that it has


def markdown(rows: Sequence[Sequence[Any]], *head: str) -> str:
    """A Markdown table of these rows."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def time_table(measured: list[Measured], seconds: bool) -> str:
    """Medians by row and variant, each with its ratio to the row's base; `seconds`: with the times themselves."""

    def cell(value: float, base: float) -> str:
        ratio = f"{value / base:.2f}"
        return f"{_short(value)} ({ratio})" if seconds else ratio

    def line(row: dict[str, Measured], variants: list[str]) -> list[str]:
        base = _base(row).median
        floors = [one.floor for one in row.values() if one.floor]
        cells = [cell(row[variant].median, base) if variant in row else "" for variant in variants]
        return [*cells, cell(floors[0], base) if floors else ""]

    # Each row's ratios are relative to the first of these variants that it has.
    bases = ", else ".join(variant for variant in BASES if any(one.variant == variant for one in measured))
    title = f"seconds (relative to {bases})" if seconds else f"time relative to {bases}"
    return _table(measured, title, line, "our floor, from the arithmetic")


def memory_table(measured: list[Measured]) -> str:
    """Peak memory by row and variant, weights included."""

    def line(row: dict[str, Measured], variants: list[str]) -> list[str]:
        base = _base(row).peak
        return [
            f"{row[variant].peak / 1e9:.2f} ({row[variant].peak / base:.2f})"
            if variant in row and row[variant].peak and base
            else ""
            for variant in variants
        ]

    return _table([one for one in measured if one.peak], "peak memory, GB", line)


def first_table(measured: list[Measured], seconds: bool) -> str:
    """The time of compiling, in multiples of our run without it; `seconds`: with the time itself."""
    rows = []
    plains = {one.name: one.median for one in measured if one.variant == "ours"}
    for one in measured:
        if one.first and one.name in plains:
            plain = plains[one.name]
            cost = f"{one.first / plain:.0f}"
            rows.append((one.name, f"{_short(one.first)} ({cost})" if seconds else cost))
    return markdown(rows, "first run, compiled", "in our runs")


def growth_table(measured: list[Measured]) -> str:
    """Growth of the time along each series, relative to its first row."""
    series = {name for one in measured for name in one.growth}
    rows = []
    for name in sorted(series):
        variants = list(dict.fromkeys(one.variant for one in measured if name in one.growth))
        for variant in variants:
            part = sorted((one for one in measured if one.variant == variant and name in one.growth), key=_amount(name))
            grown = [f"{one.growth[name]:g}: {one.median / part[0].median:.2f}" for one in part]
            if len(part) > 1:
                rows.append((name, variant, ", ".join(grown)))
    return markdown(rows, "growth with", "variant", "amount: time relative to the first")


def _amount(series: str) -> Callable[[Measured], float]:
    return lambda one: one.growth[series]


def _table(
    measured: list[Measured], title: str, line: Callable[[dict[str, Measured], list[str]], list[str]], *more: str
) -> str:
    variants = list(dict.fromkeys(one.variant for one in measured))
    rows: dict[str, dict[str, Measured]] = {}
    for one in measured:
        rows.setdefault(one.name, {})[one.variant] = one
    return markdown([(name, *line(row, variants)) for name, row in rows.items()], title, *variants, *more)


def _base(row: dict[str, Measured]) -> Measured:
    return next((row[variant] for variant in BASES if variant in row), next(iter(row.values())))


def _short(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
