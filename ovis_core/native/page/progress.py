"""Progress of text generation: a bar, the text on the running node, and the speed in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import comfy.utils
from comfy.model_management import throw_exception_if_processing_interrupted

from ...text.tokenizer import Tokenizer
from .page_messages import show_text

INTERVAL = 0.1  # seconds between messages to the page


class DecodingProgress:
    """Progress bar, the text on the node, and the speed in the log, while text is generated."""

    def __init__(
        self, max_new_tokens: int, tokenizer: Tokenizer | None = None, earlier: Sequence[str] = (), texts: int = 1
    ) -> None:
        """Progress of one text out of `texts`.

        tokenizer  decodes the text; None: no text on the node
        earlier    the texts before this one, which are shown above it
        texts      the number of texts; the bar is full after the last one
        """
        self.bar = comfy.utils.ProgressBar(texts * max_new_tokens)
        self.max_new_tokens = max_new_tokens
        self.tokenizer = tokenizer
        self.earlier, self.texts = earlier, texts
        self.start()

    def start(self) -> None:
        """Called before the prompt is computed: the times in the log begin here."""
        self.started = self.shown = time.perf_counter()
        self.first = 0.0

    def __call__(self, ids: Sequence[int]) -> None:
        """Called after each token, with all ids so far. Raises ComfyUI's interrupt."""
        throw_exception_if_processing_interrupted()
        now = time.perf_counter()
        self.first = self.first or now
        if now - self.shown >= INTERVAL:
            self.shown = now
            self._show(ids, len(ids))

    def done(self, ids: Sequence[int], prefilled: int) -> None:
        """Called at the end; prefilled: positions of the prompt that were computed."""
        self._show(ids, self.max_new_tokens)
        now = time.perf_counter()
        taken = now - self.first
        speed = f" at {(len(ids) - 1) / taken:.1f} tokens/s" if len(ids) > 1 and taken > 0 else ""
        logging.info(
            "Ovis-U1: prefilled %d positions, first token after %.2f s, generated %d tokens%s",
            prefilled,
            self.first - self.started,
            len(ids),
            speed,
        )

    def _show(self, ids: Sequence[int], count: int) -> None:
        done = len(self.earlier) * self.max_new_tokens
        self.bar.update_absolute(done + count, self.texts * self.max_new_tokens)
        if self.tokenizer:
            # The last character can take several tokens and may be incomplete.
            text = self.tokenizer.decode(ids).rstrip("\ufffd").strip()
            show_text(listed([*self.earlier, text]) if self.texts > 1 else text)


def listed(texts: Sequence[str]) -> str:
    """Texts about one image each, in order, as one text."""
    return "\n\n".join(f"Image {number}: {text.strip()}" for number, text in enumerate(texts, 1))
