"""A contact sheet: pages that show what went in and what came out, with everything in them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, ImageOps

from .record import Record, Source, read

PAGE = 200  # records a page
THUMB = 320  # pixels of a thumbnail's longer side
MOST = 8  # thumbnails of one record
STYLE = """
:root { color-scheme: light dark; --card: #fff; --page: #f3f3f1; --text: #1d1d1b; --soft: #6a6a66; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --card: #242423; --page: #161615; --text: #ecece8; --soft: #a0a09a; --bad: #ff8a80 }
}
* { box-sizing: border-box }
body { margin: 0; padding: clamp(1rem, 3vw, 2rem); background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.5rem }
header p { margin: .3rem 0 1.5rem; color: var(--soft) }
nav { margin: 1.5rem 0; display: flex; flex-wrap: wrap; gap: .4rem }
nav > * { padding: .15rem .6rem; border-radius: .4rem; background: var(--card); color: inherit; text-decoration: none }
nav b { background: var(--text); color: var(--page) }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)) }
article { display: flex; flex-direction: column; background: var(--card); border-radius: .7rem; overflow: hidden;
  box-shadow: 0 1px 3px #0002 }
.pictures { display: grid; gap: 2px; aspect-ratio: 4 / 3; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
  grid-auto-rows: minmax(7rem, 1fr) }
.pictures:empty { display: none }
figure { margin: 0; position: relative; background: #8882 }
img { position: absolute; width: 100%; height: 100%; object-fit: contain }
figcaption { position: absolute; left: .4rem; top: .4rem; padding: 0 .45rem; border-radius: .3rem; background: #000a;
  color: #fff; font-size: .75rem }
.words { flex: 1; display: flex; flex-direction: column; padding: .7rem .9rem .9rem }
.words p { margin: 0 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere }
.id { margin-top: auto; color: var(--soft); font-size: .8rem; overflow-wrap: anywhere }
.answer { font-weight: 600 }
.failed { color: var(--bad) }
"""


def contact_sheet(
    folder: Path, title: str, told: str, records: Sequence[Record], results: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Name and HTML of each page: index.html, and further ones where there are many records.

    folder  where they will lie, and what was made lies
    told    a sentence under the title
    """
    shown = [record for record in records if record.id in results]
    count = -(-len(shown) // PAGE) or 1
    names = ["index.html", *(f"index-{number}.html" for number in range(2, count + 1))]
    with ThreadPoolExecutor() as pool:
        for number, name in enumerate(names):
            part = shown[number * PAGE : (number + 1) * PAGE]
            cards = pool.map(lambda record: _card(folder, record, results[record.id]), part)
            yield name, _page(title, told, names, number, cards)


def _page(title: str, told: str, names: Sequence[str], number: int, cards: Iterable[str]) -> str:
    links = (f"<b>{i + 1}</b>" if i == number else f'<a href="{name}">{i + 1}</a>' for i, name in enumerate(names))
    pages = f"<nav>{''.join(links)}</nav>" if len(names) > 1 else ""
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    )
    words = f"<header><h1>{html.escape(title)}</h1><p>{html.escape(told)}</p></header>"
    return f"{head}{words}{pages}<main>{''.join(cards)}</main>{pages}</html>"


def _card(folder: Path, record: Record, result: Mapping[str, Any]) -> str:
    figures = [_figure(source, "source") for source in record.images[:MOST]]
    figures += [_figure(folder / name, "", name) for name in record.files[:MOST] if name in result["files"]]
    words = "".join(_words(record, result))
    return (
        f'<article><div class="pictures">{"".join(figures)}</div><div class="words">{words}'
        f'<div class="id">{html.escape(record.id)} &middot; {result["seconds"]:.1f} s</div></div></article>'
    )


def _words(record: Record, result: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{html.escape(record.prompt)}</p>"
    if "error" in result:
        yield f'<p class="failed">{html.escape(result["error"])}</p>'
    if "answer" in result:
        chances = result.get("chances", {})
        sure = f" ({chances[result['answer']]:.0%})" if result["answer"] in chances else ""
        key = record.row.get("answer")
        wanted = f", key {key}" if key not in (None, "") else ""
        yield f'<p class="answer">{html.escape(str(result["answer"]) + sure + wanted)}</p>'
    if "verdict" in result:
        right, said = result["verdict"]
        yield f'<p class="{"answer" if right else "failed"}">{html.escape(said)}</p>'


def _figure(source: Source, caption: str, link: str = "") -> str:
    picture = _thumbnail(source)
    if not picture:
        return ""
    image = f'<img src="data:image/jpeg;base64,{picture}" alt="">'
    if link:
        image = f'<a href="{quote(link)}">{image}</a>'
    label = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{image}{label}</figure>"


def _thumbnail(source: Source) -> str:
    """A small JPEG in base64; empty for what is no picture."""
    try:
        with Image.open(io.BytesIO(read(source))) as image:
            small = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    small.thumbnail((THUMB, THUMB))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=82)
    return base64.b64encode(file.getvalue()).decode()
