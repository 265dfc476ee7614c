"""Language model and visual tokenizer as the text encoder of a ComfyUI CLIP, which also generates text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import comfy.ops
import torch
from comfy import model_management
from torch import Tensor, nn

from ..multimodal import Multimodal, Token, sequence_length
from ..networks.kv_cache import KeysAndValues, KVCache
from ..pixels import VisualInput
from ..text import decoding
from ..text.decoding import GREEDY, Sampling
from ..weights.config import OvisConfig
from ..weights.lazy_tensors import LazyTensor
from .compat import CUDA_GRAPHS, takes_tensors
from .core_inputs import SECTION, own_section, refuse_unknown
from .layers.comfy_layers import comfy_layers, pinned
from .layers.filling import fill
from .layers.quantized_operations import make_fp8_layers
from .page.progress import DecodingProgress


class OvisTextModel(Multimodal):
    """`Multimodal` with ComfyUI's layers, as `comfy.sd.CLIP` drives it."""

    cuda_graphs = CUDA_GRAPHS

    def __init__(
        self,
        config: OvisConfig,
        compute_dtype: torch.dtype,
        load_device: torch.device,
        fp8_layers: Collection[str],
        device: Any = None,
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        operations = (model_options or {}).get("custom_operations") or comfy.ops.manual_cast
        super().__init__(config, comfy_layers(operations, dtype, device))
        make_fp8_layers(self, fp8_layers)
        self.train(False).requires_grad_(False)
        self.dtypes = {dtype}
        self.weight_dtype = dtype
        self.compute_dtype = compute_dtype
        self.load_device = load_device
        self.execution_device: torch.device | None = None
        self._image_cache: dict[VisualInput, Tensor] | None = None
        for layer in (*self.llm.blocks, *self.visual_tokenizer.backbone.trunk["blocks"]):
            layer.register_forward_pre_hook(_stop_if_interrupted)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Takes ComfyUI's options. Raises ValueError if a layer is chosen, because two fixed layers are used."""
        if options.get("layer") is not None:
            raise ValueError(
                "clip: CLIP Set Last Layer chose a layer, but Ovis-U1 always uses the same two layers; remove that "
                "node."
            )
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        """Resets the options to their defaults."""
        self.execution_device = None

    @contextmanager
    def caching_images(self) -> Iterator[None]:
        """A context in which each visual input is encoded once, even if several prompts contain it.

        Use it only for prompts that are encoded with the same weights.
        """
        self._image_cache = {}
        try:
            yield
        finally:
            self._image_cache = None

    def encode_image(self, visual_input: VisualInput, device: torch.device, dtype: torch.dtype) -> Tensor:
        """`Multimodal.encode_image`, cached within `caching_images`."""
        if self._image_cache is None:
            return super().encode_image(visual_input, device, dtype)
        if visual_input not in self._image_cache:
            self._image_cache[visual_input] = super().encode_image(visual_input, device, dtype)
        return self._image_cache[visual_input]

    def encode_token_weights(self, tokens: dict[str, list[list[tuple]]]) -> tuple[Tensor, None]:
        """Tokens of `OvisTokenizer` -> the condition (B, L, 2 * hidden), float32; there is no pooled output.

        Raises ValueError for another CLIP's tokens, for prompts of different length, and if they are too long.
        """
        sections = own_section(tokens)
        if len({len(section) for section in sections}) > 1:
            raise ValueError(
                "tokens: expected prompts of equal length in a batch, got different lengths; encode each prompt "
                "separately."
            )
        conditions = [
            self.condition([token[0] for token in section], self.run_device, self.compute_dtype) for section in sections
        ]
        return torch.cat(conditions).to(model_management.intermediate_device(), torch.float32), None

    def memory_estimation_function(self, tokens: dict[str, list[list[tuple]]], device: Any = None) -> int:
        """Bytes that `encode_token_weights` needs in addition to the weights; called before these are loaded."""
        sections = [[token[0] for token in section] for section in tokens.get(SECTION, ())]
        return max((self.memory_for(section) for section in sections), default=0)

    def memory_for(self, tokens: Sequence[Token], max_new_tokens: int | None = None) -> int:
        """Bytes needed to compute the condition of `tokens`, or to prefill them and decode `max_new_tokens` more."""
        frames = [token.tokens // token.grid[0] + 2 for token in tokens if isinstance(token, VisualInput)]
        length, largest = sequence_length(tokens), max(frames, default=0)
        if max_new_tokens is None:
            return self.memory_needed(length, largest, self.compute_dtype)
        return self.memory_needed(length, largest, self.decode_dtype, length + max_new_tokens)

    @property
    def run_device(self) -> torch.device:
        """The device that the network runs on."""
        return self.execution_device or self.load_device

    @property
    def decode_dtype(self) -> torch.dtype:
        """Dtype of the arithmetic and of the KV cache when text is generated.

        On a CPU bfloat16 weights are not cast: casting them for every token takes many times as long as the token
        itself.
        """
        if self.run_device.type == "cpu" and self.weight_dtype == torch.bfloat16:
            return self.weight_dtype
        return self.compute_dtype

    def pinned(self, like: Tensor) -> AbstractContextManager[bool]:
        """`Multimodal.pinned` for ComfyUI's layers."""
        return pinned(self.llm, like)

    def prefill(
        self, tokens: Sequence[Token], max_new_tokens: int, past: Sequence[KeysAndValues] = ()
    ) -> tuple[KVCache, Tensor]:
        """`decoding.prefill` on this model's device, in its dtype."""
        return decoding.prefill(self, tokens, max_new_tokens, self.run_device, self.decode_dtype, past)

    def generate_ids(
        self,
        tokens: Sequence[Token],
        max_new_tokens: int,
        sampling: Sampling,
        past: Sequence[KeysAndValues] = (),
        progress: DecodingProgress | None = None,
    ) -> tuple[list[int], KVCache]:
        """Generates at most `max_new_tokens` ids after `tokens`; returns them and the KV cache of all positions but the
        last.

        past      keys and values of the first positions, computed earlier
        progress  of this text; None: a bar, and no text on the node

        Raises ValueError if `tokens` take more positions than the language model has.
        """
        progress = progress or DecodingProgress(max_new_tokens)
        progress.start()
        cache, logits = self.prefill(tokens, max_new_tokens, past)
        prefilled = cache.length - sum(keys.shape[2] for keys, _ in past)
        ids: list[int] = []
        with closing(decoding.decode(self, cache, logits, sampling, max_new_tokens)) as decoded:
            for token_id in decoded:
                ids.append(token_id)
                progress(ids)
        progress.done(ids, prefilled)
        return ids, cache

    def generate(
        self,
        tokens: dict[str, list[list[tuple]]],
        do_sample: bool = True,
        max_length: int = 256,
        temperature: float | None = 1.0,
        top_k: int | None = 50,
        top_p: float | None = 0.95,
        min_p: float | None = 0.0,
        repetition_penalty: float | None = 1.0,
        seed: int | None = None,
        presence_penalty: float | None = 0.0,
        mtp: bool | int = True,
        **unknown: Any,
    ) -> list[int]:
        """Token ids for core's Generate Text, through `comfy.sd.CLIP.generate`, which has loaded the weights already,
        but has not reserved memory for a KV cache of `max_length`.

        A number that is None has no effect.

        mtp  speculative decoding with heads for multi-token prediction, which Ovis-U1 does not have: no effect

        Raises ValueError for any other option, such as the number of beams, unless it is empty or 1, which has no
        effect.
        """
        refuse_unknown({name: value for name, value in unknown.items() if not _is_one(value)})
        sequence = [token[0] for token in own_section(tokens)[0]]
        max_new_tokens = self.limit_new_tokens(sequence, max_length)
        loaded = [m for m in model_management.current_loaded_models if m.model is not None and m.model.model is self]
        model_management.free_memory(self.memory_for(sequence, max_new_tokens), self.run_device, keep_loaded=loaded)
        temperature = 1.0 if temperature is None else temperature
        sampling = Sampling(
            temperature if do_sample else GREEDY.temperature,
            1.0 if top_p is None else top_p,
            top_k or 0,
            min_p or 0.0,
            repetition_penalty or 1.0,
            presence_penalty or 0.0,
            seed or 0,
        )
        return self.generate_ids(sequence, max_new_tokens, sampling)[0]

    def load_sd(self, sd: Mapping[str, LazyTensor]) -> tuple[list[str], list[str]]:
        """Loads weights with the release's names.

        ComfyUI expects lists of missing and unexpected names; both are empty, because `checkpoint.py` has checked them.
        """
        fill(self, sd, assign=takes_tensors(self))
        return [], []


def _is_one(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 1


def _stop_if_interrupted(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    model_management.throw_exception_if_processing_interrupted()
