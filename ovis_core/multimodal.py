"""Where the networks meet: text and pictures -> embeddings -> the condition of an image.

The report calls the two parts here the language model and the visual tokenizer; `vte` is the visual embedding
table between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import OvisConfig
from .networks.language import LanguageModel
from .networks.layers import Layers
from .networks.vision import INDICATORS, VisualTokenizer
from .pixels import VisualInput
from .prompts import Picture

# Rows of the visual embedding table, counted from its end, that open and close a picture.
BRACKETS = {Picture.IMAGE: (-5, -4), Picture.VIDEO: (-3, -3)}

Token = int | VisualInput


class Multimodal(nn.Module):
    """Language model, visual tokenizer and visual embedding table. Weights carry the release's names."""

    def __init__(self, config: OvisConfig, layers: Layers | None = None) -> None:
        super().__init__()
        layers = layers or Layers()
        self.config = config
        self.llm = LanguageModel(config.language, layers)
        self.visual_tokenizer = VisualTokenizer(config.vision, layers)
        self.vte = layers.embedding(config.vision.vocab_size, config.language.hidden_size)

    def memory_needed(self, length: int, visual_tokens: int, dtype: torch.dtype) -> int:
        """Bytes of the tensors that are alive at once in `condition`, without the weights, with a margin.

        length         positions of the sequence
        visual_tokens  those of its largest picture
        """
        language, vision = self.config.language, self.config.vision
        # Logits, their softmax in float32 and the probabilities, beside the table that they multiply.
        words = visual_tokens * vision.vocab_size * (2 * dtype.itemsize + 4)
        table = vision.vocab_size * language.hidden_size * dtype.itemsize
        patches = visual_tokens * vision.hidden_stride**2 * dtype.itemsize
        features = patches * (8 * vision.hidden_size + 3 * vision.intermediate_size)
        states = language.num_hidden_layers + 8
        layers = length * dtype.itemsize * (states * language.hidden_size + 3 * language.intermediate_size)
        return int(1.2 * max(words + table, features, layers))

    def see(self, picture: VisualInput, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Embeddings (tokens, hidden) of a picture: begin, one for each 2 x 2 patches, end."""
        probabilities = self.visual_tokenizer(picture.patches.to(device, dtype), picture.grid)
        # The layer's own forward, and not its weight, so that casting, offloading and LoRA reach the table.
        table = self.vte(torch.arange(self.config.vision.vocab_size, device=device)).to(dtype)
        begin, end = BRACKETS[picture.kind]
        words = probabilities @ table[:-INDICATORS]
        return torch.cat((table[begin, None], words, table[end, None]))

    def embed(self, tokens: Sequence[Token], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Token ids and pictures in reading order -> (L, hidden) on `device`."""
        ids = torch.tensor([0 if isinstance(t, VisualInput) else t for t in tokens], device=device)
        text = self.llm.embed(ids, dtype)
        parts, start = [], 0
        for i, token in enumerate(tokens):
            if isinstance(token, VisualInput):
                parts += [text[start:i], self.see(token, device, dtype)]
                start = i + 1
        return torch.cat((*parts, text[start:]))

    def condition(self, tokens: Sequence[Token], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Token ids and pictures -> the decoder's condition (1, L, 2 * hidden), before the refiner.

        Raises ValueError when they take more positions than the language model has.
        """
        length, limit = sequence_length(tokens), self.config.language.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"prompt: text and pictures take {length} positions and the language model has {limit}; "
                "shorten the text."
            )
        return self.llm.condition(self.embed(tokens, device, dtype)[None])


def sequence_length(tokens: Sequence[Token]) -> int:
    """Positions in the language model."""
    return sum(token.tokens if isinstance(token, VisualInput) else 1 for token in tokens)
