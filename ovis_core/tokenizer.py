"""Text to token ids and back, with Qwen3's vocabulary."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import tokenizers
import transformers

from .prompts import Control, Part, Picture

MEND = "Download them again, or delete them to use those that ComfyUI ships."


class Tokenizer:
    """Byte-level BPE over a folder of Qwen2 or Qwen3 tokenizer files.

    The vocabularies of Qwen2.5 and Qwen3 differ in the names of four control ids only, and control ids come from
    `prompts.Control` here, so either set of files serves. Text is encoded without any control tokens: characters
    stay characters.
    """

    def __init__(self, source: str | Path | Mapping[str, bytes]) -> None:
        """source: the folder, or the files by name."""
        if isinstance(source, Mapping):
            with tempfile.TemporaryDirectory() as folder:
                for name, data in source.items():
                    (Path(folder) / name).write_bytes(data)
                self._read(folder, "the weights' own tokenizer")
        else:
            self._read(source, source)

    def _read(self, folder: str | Path, called: str | Path) -> None:
        # It warns of tokenizers of another model's kind by looking for their configs, which are not here.
        told = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        qwen2 = getattr(transformers, "Qwen2TokenizerFast", None) or transformers.Qwen2Tokenizer
        try:
            files = qwen2.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
        except Exception as error:  # of many kinds, for files of many kinds
            raise ValueError(f"{called}: its tokenizer files cannot be read ({error}). {MEND}") from error
        finally:
            transformers.logging.set_verbosity(told)
        self._bpe = tokenizers.Tokenizer(files.model)
        if self._bpe.get_vocab_size() < Control.END_OF_TEXT:
            raise ValueError(
                f"{called}: its tokenizer has {self._bpe.get_vocab_size()} words and Qwen3's has "
                f"{int(Control.END_OF_TEXT)}. {MEND}"
            )
        self._bpe.normalizer = files.normalizer
        self._bpe.pre_tokenizer = files.pre_tokenizer
        self._bpe.decoder = files.decoder

    def encode(self, parts: Sequence[Part]) -> list[int | Picture]:
        """Token ids of a prompt's parts, with the pictures left in their places."""
        out: list[int | Picture] = []
        # Neighbouring texts are one text to the BPE: a prompt's first letter may merge with the template's last.
        for is_text, run in groupby(parts, lambda part: isinstance(part, str)):
            if is_text:
                out.extend(self._bpe.encode(_valid("".join(run)), add_special_tokens=False).ids)
            else:
                out.extend(part if isinstance(part, Picture) else int(part) for part in run)
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; control tokens are left out."""
        return self._bpe.decode([i for i in ids if i < Control.END_OF_TEXT])


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"prompt: {text[error.start : error.end]!r} is no character; remove it.") from error
    return text
