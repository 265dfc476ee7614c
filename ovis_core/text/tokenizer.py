"""Text to token ids and back, with Qwen3's vocabulary."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ..special_tokens import Control, Placeholder
from ..weights.release import TOKENIZER_FILES
from .prompts import PromptPart

# Qwen2's pre-tokenization: merges stay within words, single digits, signs, line ends and spaces.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# A text and its ids in each of these vocabularies. It uses the vocabulary's last merge.
PROBE = "Describe a caf\u00e9, \u6f22\u5b57 and \u043a\u043e\u0448\u043a\u0438 3\u2f57"
PROBE_IDS = [74785, 264, 51950, 11, 6567, 120, 95, 18600, 323, 87415, 133041, 220, 18, 151642]
EMPTY: Mapping[int, str] = MappingProxyType({})
# Remedies in messages.
REPLACE = "download its files again, or delete them to use those of ComfyUI"
SAVE_AGAIN = "save or download the model again"


class Tokenizer:
    """Byte-level BPE over a folder of Qwen2 or Qwen3 tokenizer files.

    The vocabularies of Qwen2.5 and Qwen3 differ in the names of four control ids only, and control ids come from
    `special_tokens.Control` here, so both sets of files work. Text is encoded without control tokens: a control token's
    name in it is plain text.
    """

    def __init__(self, source: str | Path | Mapping[str, bytes]) -> None:
        """source: the folder, or the files by name.

        Raises ValueError if they cannot be read or their vocabulary is not Qwen3's.
        """
        if isinstance(source, Mapping):
            with tempfile.TemporaryDirectory() as folder:
                for name, data in source.items():
                    (Path(folder) / name).write_bytes(data)
                self._read(Path(folder), "the tokenizer stored with the weights", SAVE_AGAIN)
        else:
            self._read(Path(source), f"the tokenizer in {source}", REPLACE)

    def _read(self, folder: Path, called: str, remedy: str) -> None:
        try:
            self._bpe = Backend(_vocabulary(folder))
            self._bpe.normalizer = normalizers.NFC()
            self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(PIECES), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            self._bpe.decoder = decoders.ByteLevel()
            ids = self.encode([PROBE])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # errors differ from file to file; a panic in the library is not an Exception
            raise ValueError(f"{called} cannot be read ({error}); {remedy}.") from error
        if ids != PROBE_IDS:
            raise ValueError(f"{called}: expected Qwen3's vocabulary, got a different or incomplete one; {remedy}.")

    def encode(self, parts: Sequence[PromptPart]) -> list[int | Placeholder]:
        """Token ids of a prompt's parts, with placeholders left in their positions.

        Raises ValueError if a text contains half of a surrogate pair, which cannot be encoded.
        """
        out: list[int | Placeholder] = []
        # Neighbouring texts are encoded as one: a prompt's first letter may merge with the template's last.
        for is_text, run in groupby(parts, lambda part: isinstance(part, str)):
            if is_text:
                out.extend(self._bpe.encode(_valid("".join(run)), add_special_tokens=False).ids)
            else:
                out.extend(part if isinstance(part, Placeholder) else int(part) for part in run)
        return out

    def decode(self, ids: Sequence[int], names: Mapping[int, str] = EMPTY) -> str:
        """Text of token ids. Control tokens are left out, except those in `names`, which appear as their names."""
        named = [i for i in ids if i < Control.END_OF_TEXT or i in names]
        runs = groupby(named, lambda i: names.get(i))
        return "".join(self._bpe.decode(list(run)) if name is None else name * len(list(run)) for name, run in runs)


def _vocabulary(folder: Path) -> models.Model:
    pair, (whole,) = TOKENIZER_FILES
    if all((folder / name).is_file() for name in pair):
        return models.BPE.from_file(*(str(folder / name) for name in pair))
    return Backend.from_file(str(folder / whole)).model


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt: {text[error.start : error.end]!r} is half of a surrogate pair, not a character; remove it."
        ) from error
    return text
