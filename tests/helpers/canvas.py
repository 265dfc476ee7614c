"""Positions of nodes on the page's canvas."""

from __future__ import annotations

from itertools import combinations
from typing import Any

TITLE = 30  # pixels of a node's title, above its position
READABLE = 0.6  # below this zoom the canvas draws no text


def boxes(nodes: list[dict[str, Any]]) -> list[tuple[Any, float, float, float, float]]:
    """(what, left, top, right, bottom) of nodes, titles included."""
    found = []
    for node in nodes:
        (x, y), (width, height) = node["pos"], node["size"]
        found.append((f"{node['id']} {node['type']}", x, y - TITLE, x + width, y + height))
    return found


def overlaps(nodes: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Pairs of nodes of which one covers a part of the other."""
    return [
        (a[0], b[0])
        for a, b in combinations(boxes(nodes), 2)
        if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]
    ]


def strays(nodes: list[dict[str, Any]], groups: list[dict[str, Any]]) -> list[str]:
    """Nodes that reach out of their group, cover its title or have no group; notes that cover a group."""
    notes = {f"{node['id']} {node['type']}" for node in nodes if node["type"] == "MarkdownNote"}
    found = []
    for what, left, top, right, bottom in boxes(nodes):
        places = [group["bounding"] for group in groups]
        if what in notes:
            wrong = any(left < x + w and x < right and top < y + h and y < bottom for x, y, w, h in places)
        else:
            inside = [x <= left and y + TITLE <= top and right <= x + w and bottom <= y + h for x, y, w, h in places]
            wrong = inside.count(True) != 1
        if wrong:
            found.append(what)
    return found
