"""Language model and visual tokenizer as one ComfyUI CLIP, which conditions images and writes text."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import comfy.supported_models_base
import torch
from comfy import model_management
from comfy.cli_args import args as cli_args
from torch import Tensor, nn

from .. import generation
from ..carried import carried
from ..config import OvisConfig
from ..multimodal import Multimodal, Token, sequence_length
from ..networks.cache import KeysAndValues, KeyValueCache
from ..next_token import GREEDY, Sampling
from ..pixels import VisualInput
from ..precision import DEFAULT, Precision, in_precision
from ..stored import Stored, scaled_layers
from ..tokenizer import Tokenizer
from .filling import castable, fill, for_device, scaled_operations
from .layers import comfy_layers, holding, keep_patchable, prepare
from .progress import Writing
from .tokens import SECTION, OvisTokenizer, own_section, refuse_unknown

DTYPE_FLAGS = ("fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc", "fp16_text_enc", "bf16_text_enc", "fp32_text_enc")


class OvisTextModel(Multimodal):
    """`Multimodal` with ComfyUI's layers, as `comfy.sd.CLIP` drives it."""

    def __init__(
        self,
        config: OvisConfig,
        compute_dtype: torch.dtype,
        load_device: torch.device,
        precision: Precision,
        device: Any = None,
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        operations = (model_options or {}).get("custom_operations") or comfy.ops.manual_cast
        super().__init__(config, comfy_layers(operations, dtype, device))
        prepare(self, precision)
        self.train(False).requires_grad_(False)
        self.dtypes = {dtype}
        self.stored_dtype = dtype
        self.compute_dtype = compute_dtype
        self.load_device = load_device
        self.execution_device: torch.device | None = None
        self._seen: dict[VisualInput, Tensor] | None = None
        for layer in (*self.llm.blocks, *self.visual_tokenizer.backbone.trunk["blocks"]):
            layer.register_forward_pre_hook(_stop_if_interrupted)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Takes ComfyUI's options. Raises ValueError for a chosen layer: the condition is made of two fixed ones."""
        if options.get("layer") is not None:
            raise ValueError(
                "clip: CLIP Set Last Layer chose a layer, and Ovis-U1 encodes with two fixed layers; remove that node."
            )
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        """Back to the defaults."""
        self.execution_device = None

    @contextmanager
    def seeing_once(self) -> Iterator[None]:
        """Within it each picture goes through the visual tokenizer once, however many prompts hold it.

        Only for prompts that are encoded with the same weights.
        """
        self._seen = {}
        try:
            yield
        finally:
            self._seen = None

    def see(self, picture: VisualInput, device: torch.device, dtype: torch.dtype) -> Tensor:
        """`Multimodal.see`, remembered within `seeing_once`."""
        if self._seen is None:
            return super().see(picture, device, dtype)
        if picture not in self._seen:
            self._seen[picture] = super().see(picture, device, dtype)
        return self._seen[picture]

    def encode_token_weights(self, tokens: dict[str, list[list[tuple]]]) -> tuple[Tensor, None]:
        """Tokens of `OvisTokenizer` -> the condition (B, L, 2 * hidden), float32; there is no pooled output.

        Raises ValueError for another CLIP's tokens, for prompts of different length, and where they are too long.
        """
        sections = own_section(tokens)
        if len({len(section) for section in sections}) > 1:
            raise ValueError("tokens: prompts of different length cannot be one batch; encode each by itself.")
        conditions = [
            self.condition([token[0] for token in section], self.run_device, self.compute_dtype) for section in sections
        ]
        return torch.cat(conditions).to(model_management.intermediate_device(), torch.float32), None

    def memory_estimation_function(self, tokens: dict[str, list[list[tuple]]], device: Any = None) -> int:
        """Bytes that `encode_token_weights` needs besides the weights; ComfyUI asks before it loads them."""
        sections = [[token[0] for token in section] for section in tokens.get(SECTION, ())]
        return max((self.memory_for(section) for section in sections), default=0)

    def memory_for(self, tokens: Sequence[Token], room: int | None = None) -> int:
        """Bytes to condition on `tokens`, or to write `room` more after them."""
        frames = [token.tokens // token.grid[0] + 2 for token in tokens if isinstance(token, VisualInput)]
        length, largest = sequence_length(tokens), max(frames, default=0)
        if room is None:
            return self.memory_needed(length, largest, self.compute_dtype)
        return self.memory_needed(length, largest, self.writing_dtype, length + room)

    @property
    def run_device(self) -> torch.device:
        """Where it runs."""
        return self.execution_device or self.load_device

    @property
    def writing_dtype(self) -> torch.dtype:
        """Dtype of the arithmetic when text is written.

        On a CPU that of bfloat16 weights: casting them for every token takes many times as long as the token.
        """
        if self.run_device.type == "cpu" and self.stored_dtype == torch.bfloat16:
            return self.stored_dtype
        return self.compute_dtype

    def holding(self, like: Tensor) -> AbstractContextManager[bool]:
        """As `Multimodal.holding`."""
        return holding(self.llm, like)

    def write(
        self,
        tokens: Sequence[Token],
        room: int,
        sampling: Sampling,
        computed: Sequence[KeysAndValues] = (),
        tokenizer: Tokenizer | None = None,
    ) -> tuple[list[int], KeyValueCache]:
        """Ids of at most `room` tokens that follow `tokens`, and the cache that holds all but the last of them.

        With a `tokenizer` the text shows on the running node.

        Raises ValueError when `tokens` take more positions than the language model has.
        """
        progress = Writing(room, tokenizer)
        cache, logits = self.read(tokens, room, self.run_device, self.writing_dtype, computed)
        read = cache.length - sum(keys.shape[2] for keys, _ in computed)
        ids: list[int] = []
        with closing(generation.write(self, cache, logits, sampling, room)) as written:
            for token in written:
                ids.append(token)
                progress(ids)
        progress.done(ids, read)
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
        """As `comfy.sd.CLIP.generate` asks it of the models of core's Generate Text; the CLIP has loaded the weights
        already, but not asked for a cache of `max_length`.

        A number that is None has no effect.

        mtp  speculative decoding with prediction heads for further tokens, which no Ovis-U1 has: no effect

        Raises ValueError for any other option that is neither empty nor 1: of factors and counts, such as the number of
        beams, that is the one without effect.
        """
        refuse_unknown({name: value for name, value in unknown.items() if not _is_one(value)})
        sequence = [token[0] for token in own_section(tokens)[0]]
        room = self.room(sequence, max_length)
        loaded = [m for m in model_management.current_loaded_models if m.model is not None and m.model.model is self]
        model_management.free_memory(self.memory_for(sequence, room), self.run_device, keep_loaded=loaded)
        drawn = 1.0 if temperature is None else temperature
        sampling = Sampling(
            drawn if do_sample else GREEDY.temperature,
            1.0 if top_p is None else top_p,
            top_k or 0,
            min_p or 0.0,
            repetition_penalty or 1.0,
            presence_penalty or 0.0,
            seed or 0,
        )
        return self.write(sequence, room, sampling)[0]

    def load_sd(self, sd: Mapping[str, Stored]) -> tuple[list[str], list[str]]:
        """Loads weights with the release's names. Raises `CheckpointError` for NaN or infinity.

        ComfyUI expects lists of missing and of unexpected names; both are empty, for `checkpoint.py` has checked them.
        """
        fill(self, sd, assign=getattr(self, "can_assign_sd", False))
        return [], []


def build_clip(
    config: OvisConfig,
    weights: Mapping[str, Stored],
    tokenizer: Path | Mapping[str, bytes] | None,
    precision: Precision = DEFAULT,
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """CLIP from the release's weights (names with their prefixes).

    tokenizer        the model's own files, or their folder; None: ComfyUI's bundled Qwen2.5 files, which serve as well
    disable_dynamic  no dynamic VRAM, where ComfyUI has it
    """
    load_device = model_management.text_encoder_device()
    precision = for_device(precision, weights, load_device)
    weights = in_precision(weights, precision)
    stored = weights["llm.model.embed_tokens.weight"].dtype
    dtype, compute_dtype = choose_dtypes(stored, load_device, precision)
    options: dict[str, Any] = {"dtype": dtype}
    parameters = sum(stored.meta.nelement() for stored in weights.values())
    if scaled_layers(weights):
        # The language model's activations have outliers that 8 bits don't hold.
        options["custom_operations"], weights = scaled_operations(weights, dtype, load_device, fast=False)
    target = comfy.supported_models_base.ClipTarget(OvisTokenizer, OvisTextModel)
    target.params = {
        "config": config,
        "compute_dtype": compute_dtype,
        "load_device": load_device,
        "precision": precision,
    }
    kwargs: dict[str, Any] = {
        "tokenizer_data": {
            "positions": config.language.max_position_embeddings,
            "source": tokenizer,
            "carried": carried(tokenizer, language=config.language, vision=config.vision),
        },
        "parameters": parameters,
        "model_options": options,
    }
    offered = inspect.signature(comfy.sd.CLIP.__init__).parameters
    if "disable_dynamic" in offered:
        kwargs["disable_dynamic"] = disable_dynamic
    # Newer ComfyUIs take the weights at once, so that they may stay in the file until they are needed.
    if "state_dict" in offered:
        clip = comfy.sd.CLIP(target, state_dict=[weights], **kwargs)
    else:
        clip = comfy.sd.CLIP(target, **kwargs)
        clip.load_sd(weights)
    # These layers cast their own weights, so ComfyUI must not force it; it may have loaded them already.
    clip.patcher.force_cast_weights = False
    keep_patchable(clip.patcher)
    return clip


def choose_dtypes(
    stored: torch.dtype, device: torch.device, precision: Precision = DEFAULT
) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the weights, dtype of the arithmetic) for a text encoder on `device`.

    Weights stay as they are stored unless the precision or a command line flag asks for another type, or float32
    weights meet a device that computes bfloat16. Qwen3's activations overflow float16, so the arithmetic is never that.
    """
    compute = torch.bfloat16 if model_management.should_use_bf16(device) else torch.float32
    if precision.every is not None:
        return precision.every, torch.float32 if precision.every == torch.float32 else compute
    if any(getattr(cli_args, flag, False) for flag in DTYPE_FLAGS):
        asked = model_management.text_encoder_dtype(device)
        if castable(asked, device):
            return asked, compute
        logging.warning(
            "Ovis-U1: the text encoder type %s from the command line does not work on this device (%s) and is ignored.",
            asked,
            device.type,
        )
    if stored == torch.float32:
        return compute, compute
    return stored, compute


def _is_one(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 1


def _stop_if_interrupted(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    model_management.throw_exception_if_processing_interrupted()
