"""Writes the English texts of the page from the nodes' schemas: locales/en, and the lists in the help pages.

    python scripts/node_texts.py [--comfyui PATH] [--keep]

A translation of a text that has changed is removed, and the page shows the English until there is a new one; use --keep
to keep translations if only the wording has changed.

Standard library only; the part that starts ComfyUI runs in the environment that this script creates.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import workspace
from console import Ticker, guarded

ROOT = workspace.ROOT
LOCALES = ROOT / "locales"
ENGLISH = LOCALES / "en" / "nodeDefs.json"
OURS = "OvisU1"  # prefix of our nodes' ids
GROWING = "COMFY_AUTOGROW_V3"  # the type of an input that grows
FEW = 3  # of its members have texts: those that a ComfyUI without such inputs shows, as in native/compat.py
MAX_CHOICES = 8  # longer lists, which are ComfyUI's own, are not shown
CODE = re.compile(r"<\w+>|\{\w+\}|models/[\w./-]*\w|\w+\.json|\b[\w./-]*_[\w./-]*\w")

Tree = dict[str, Any]
Places = dict[tuple[str, ...], str]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write locales/en and the lists of the help pages from the nodes.")
    parser.add_argument("--comfyui", metavar="PATH", help="the ComfyUI to ask, or 'registry' for the pinned copy")
    parser.add_argument("--keep", action="store_true", help="keep translations of changed texts")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        write(ask(Path(args.comfyui)), args.keep)
        return 0
    workspace.check_python()
    comfyui = workspace.find_comfyui(args.comfyui, registry_only=True)
    python = workspace.prepare_env(comfyui.path)
    command = [str(Path(__file__)), "--inside", "--comfyui", str(comfyui.path), *(["--keep"] if args.keep else [])]
    return workspace.hand_over(python, command)


def ask(comfyui: Path) -> Tree:
    """ComfyUI's description of its nodes, by their ids."""
    from comfy_server import ComfyServer

    with tempfile.TemporaryDirectory() as folder, Ticker("reading the schemas from ComfyUI"):
        base = workspace.make_base(Path(folder), ROOT, comfyui)
        with ComfyServer(comfyui, base, ["--cpu"]) as server:
            return server.object_info()


def write(info: Mapping[str, Any], keep: bool) -> None:
    """Writes the files that differ, and prints their names."""
    old = leaves(json.loads(ENGLISH.read_text(encoding="utf-8")))
    new = leaves(english(info))
    made = texts(info)
    for file in sorted(LOCALES.glob("*/nodeDefs.json")):
        if file != ENGLISH:
            found = leaves(json.loads(file.read_text(encoding="utf-8")))
            made[file] = as_json(tree(current(found, new if keep else old, new)))
    for file, text in made.items():
        if file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8", newline="\n")
            print(file.relative_to(ROOT))


def texts(info: Mapping[str, Any]) -> dict[Path, str]:
    """Every file that is made from the schemas, with its contents."""
    made = {ENGLISH: as_json(english(info))}
    for name, node in nodes(info).items():
        file = ROOT / "web" / "docs" / f"{name}.md"
        made[file] = with_lists(file.read_text(encoding="utf-8"), node, titles(info))
    return made


def nodes(info: Mapping[str, Any]) -> Tree:
    """The pack's nodes, without those of others."""
    return {name: node for name, node in info.items() if name.startswith(OURS)}


def titles(info: Mapping[str, Any]) -> list[str]:
    """The names that our nodes have on the page."""
    return [node["display_name"] for node in nodes(info).values()]


def inputs_of(node: Mapping[str, Any]) -> Iterable[tuple[str, Any, dict[str, Any], bool]]:
    """Each input's id, type or list of choices, options, and whether it is optional.

    An input that grows is listed as the plain inputs that a ComfyUI without such inputs has. Their ids are the same,
    and the page looks up texts by them.
    """
    for group in ("required", "optional"):
        for name, (kind, options) in node["input"].get(group, {}).items():
            if kind != GROWING:
                yield name, kind, options, group == "optional"
                continue
            template = options["template"]
            ((kind, options),) = (spec for specs in template["input"].values() for spec in specs.values())
            for member in template["names"][:FEW]:
                yield f"{name}.{member}", kind, options | {"display_name": member}, True


def english(info: Mapping[str, Any]) -> Tree:
    """The nodes' own texts in the form of a locale: keys have no dots, and braces are escaped."""
    found: Tree = {}
    for name, node in nodes(info).items():
        outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
        found[name] = {
            "display_name": node["display_name"],
            "description": escaped(node["description"]),
            "inputs": {
                key.replace(".", "_"): {"name": shown(key, options), "tooltip": escaped(options["tooltip"])}
                for key, _, options, _ in inputs_of(node)
            },
            "outputs": {
                str(slot): {"name": called, "tooltip": escaped(tooltip)}
                for slot, (called, tooltip) in enumerate(outputs)
            },
        }
    return found


def shown(key: str, options: Mapping[str, Any]) -> str:
    """The name that the page shows for an input."""
    return options.get("display_name", key)


def escaped(text: str) -> str:
    """Escapes braces, which the page would otherwise treat as placeholders."""
    return re.sub(r"[{}]", r"{'\g<0>'}", text)


def with_lists(page: str, node: Mapping[str, Any], names: Iterable[str]) -> str:
    """A help page with new lists under its headings Inputs and Outputs; other text stays."""
    inputs = []
    for _, alike in groupby(inputs_of(node), lambda row: row[0].split(".")[0] if "display_name" in row[2] else row[0]):
        (_, kind, options, optional), *_ = rows = [*alike]
        called = "`, `".join(shown(row[0], row[2]) for row in rows)
        inputs.append(line(called, facts(kind, options, optional), options["tooltip"], names))
    rows = zip(node["output_name"], node["output"], node["output_is_list"], node["output_tooltips"], strict=True)
    outputs = [line(name, f"list of {kind}" if many else kind, tip, names) for name, kind, many, tip in rows]
    for heading, lines in (("Inputs", inputs), ("Outputs", outputs)):
        page, count = re.subn(
            rf"(?m)^(## {heading}\n\n)(?:- .*\n)*", lambda found, lines=lines: found[1] + "".join(lines), page
        )
        if count != 1:
            raise ValueError(
                f"{page.splitlines()[0]}: expected one heading '## {heading}', got {count}; correct the page."
            )
    return page


def line(name: str, what: str, tooltip: str, names: Iterable[str]) -> str:
    """One entry of a list, in Markdown: ids and paths as code, our nodes' names in italics."""
    text = CODE.sub(r"`\g<0>`", tooltip)
    text = re.sub("|".join(sorted(map(re.escape, names), key=len, reverse=True)), r"*\g<0>*", text)
    return f"- `{name}` ({what}): {text}\n"


def facts(kind: Any, options: Mapping[str, Any], optional: bool) -> str:
    """Type, range, default, and whether it is optional."""
    choices = kind if isinstance(kind, list) else options.get("options", [])
    default = options.get("default")
    found = "choice" if isinstance(kind, list) or kind == "COMBO" else kind
    if choices and default is not None and len(choices) <= MAX_CHOICES:
        found += ": " + ", ".join(f"`{choice}`" for choice in choices)
    if "min" in options:
        found += f", {number(options['min'])} to {number(options['max'])}"
        if options.get("step", 1) != 1:
            found += f", step {number(options['step'])}"
    if isinstance(default, bool):
        found += f"; default {'on' if default else 'off'}"
    elif isinstance(default, str):
        found += f"; default `{default}`" if default else "; default empty"
    elif default is not None:
        found += f"; default {number(default)}"
    return found + ("; optional" if optional else "")


def number(value: float) -> str:
    """The number, without a fraction of zeros."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def current(found: Places, old: Places, new: Places) -> Places:
    """The texts of a language whose English is unchanged."""
    return {place: found[place] for place in new if place in found and old.get(place) == new[place]}


def leaves(branch: Any, path: tuple[str, ...] = ()) -> Places:
    """A locale's texts by their keys."""
    if isinstance(branch, dict):
        return {place: text for key, value in branch.items() for place, text in leaves(value, (*path, key)).items()}
    return {path: branch}


def tree(found: Places) -> Tree:
    """The opposite of `leaves`."""
    root: Tree = {}
    for (*path, last), text in found.items():
        branch = root
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = text
    return root


def as_json(content: Tree) -> str:
    """JSON in the format of the locale files."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(guarded(main))
