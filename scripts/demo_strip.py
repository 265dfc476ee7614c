"""The demo's images side by side, with their texts."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 320  # pixels of an image's longer side
GAP = 16
WORDS = 76  # height in pixels of the text under the images
COLUMNS = 38  # characters in a line
SIZE, LARGE = 16, 44
PAGE, INK, SOFT = (236, 236, 232), (30, 30, 28), (120, 120, 114)


def strip(image: Path, edited: Path, prompt: str, instruction: str, question: str, answer: str) -> Image.Image:
    """The first and the edited image with their prompts, then the question with its answer."""
    page = Image.new("RGB", (3 * TILE + 4 * GAP, TILE + WORDS + 2 * GAP), PAGE)
    pen = ImageDraw.Draw(page)
    for place, (file, label, words) in enumerate(((image, "Image", prompt), (edited, "Edit", instruction))):
        with Image.open(file) as picture:
            scale = TILE / max(picture.size)
            shown = picture.convert("RGB").resize(
                [round(side * scale) for side in picture.size], Image.Resampling.LANCZOS
            )
        x = GAP + place * (TILE + GAP)
        page.paste(shown, (x + (TILE - shown.width) // 2, GAP + (TILE - shown.height) // 2))
        _write(pen, x, label, words)
    x = GAP + 2 * (TILE + GAP)
    pen.rectangle((x, GAP, x + TILE - 1, GAP + TILE - 1), fill=(255, 255, 255))
    short = len(answer) <= 12
    letters = font(LARGE if short else SIZE)
    text = "\n".join(textwrap.wrap(answer, COLUMNS)[:15])
    left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=letters)
    at = (x + (TILE - right - left) / 2, GAP + (TILE - bottom - top) / 2)
    pen.multiline_text(at, text, fill=INK, font=letters)
    _write(pen, x, "Ask", question)
    return page


def _write(pen: ImageDraw.ImageDraw, x: int, label: str, words: str) -> None:
    y = GAP + TILE + 8
    pen.text((x, y), label, fill=SOFT, font=font(SIZE))
    pen.multiline_text((x, y + 22), "\n".join(textwrap.wrap(words, COLUMNS)[:3]), fill=INK, font=font(SIZE))


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, of about so many pixels."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # an older Pillow, or one without FreeType, has one size
        return ImageFont.load_default()
