"""Language model and visual tokenizer as one ComfyUI CLIP."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders
import torch
from comfy import model_management
from comfy.cli_args import args as cli_args
from comfy.ldm.flux.math import attention
from PIL import Image
from torch import Tensor, nn

from .. import prompts
from ..config import OvisConfig, VisionConfig
from ..multimodal import Multimodal, sequence_length
from ..networks.layers import Layers
from ..pixels import VisualInput, blank_input, condition_input
from ..tokenizer import Tokenizer

SECTION = "ovis_u1"  # key of our tokens in what CLIP.tokenize answers
DEFAULT_SIZE = 1024  # of the blank picture, where a node such as CLIPTextEncode knows no size
BUNDLED_TOKENIZER = Path(comfy.text_encoders.__path__[0]) / "qwen25_tokenizer"
DTYPE_FLAGS = ("fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc", "fp16_text_enc", "bf16_text_enc", "fp32_text_enc")


class OvisTokenizer:
    """Prompt -> tokens, in the form of ComfyUI's tokenizers."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        data = tokenizer_data or {}
        self.vision: VisionConfig = data["vision"]
        self.tokenizer = Tokenizer(data.get("folder") or BUNDLED_TOKENIZER)

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        width: int = DEFAULT_SIZE,
        height: int = DEFAULT_SIZE,
        **kwargs: Any,
    ) -> dict[str, list[list[tuple]]]:
        """Tokens of the text-to-image condition for an image of width x height pixels.

        Where `text` is empty it is the model's own prompt without text. A token is a pair of (id or
        `VisualInput`, weight). Weights are always 1: the model reads sentences; parentheses mean themselves.
        """
        if any(kwargs.get(name) is not None and len(kwargs[name]) for name in ("image", "images")):
            raise ValueError("images: this node cannot give Ovis-U1 a picture; use Ovis-U1 Edit Encode.")
        parts = prompts.text_to_image(text) if text.strip() else prompts.unconditional()
        tokens = self.tokenize_parts(parts, [self.blank(height, width)])
        if return_word_ids:
            return {name: [[(*p, i) for i, p in enumerate(pairs)] for pairs in batch] for name, batch in tokens.items()}
        return tokens

    def tokenize_parts(
        self, parts: Sequence[prompts.Part], pictures: Sequence[VisualInput]
    ) -> dict[str, list[list[tuple]]]:
        """Tokens of a prompt with one place for a picture: a batch of as many sequences as there are pictures."""
        tokens = self.tokenizer.encode(parts)
        return {
            SECTION: [[(picture if isinstance(t, prompts.Picture) else t, 1.0) for t in tokens] for picture in pictures]
        }

    def blank(self, height: int, width: int) -> VisualInput:
        """The blank picture that stands for an image of height x width pixels yet to be made."""
        return blank_input(height, width, self.vision.patch_size, self.vision.hidden_stride)

    def source(self, image: Image.Image) -> VisualInput:
        """An edit's source, given at the edit's target size."""
        return condition_input(image, self.vision.patch_size, self.vision.hidden_stride)

    def untokenize(self, pairs: list[tuple]) -> list[tuple]:
        """Pairs with the text of each token."""
        return [(p, "" if isinstance(p[0], VisualInput) else self.tokenizer.decode([p[0]])) for p in pairs]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(token_ids)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to save: the vocabulary is ComfyUI's or the release's."""
        return {}


class OvisTextModel(Multimodal):
    """`Multimodal` with ComfyUI's layers, as `comfy.sd.CLIP` drives it."""

    def __init__(
        self,
        config: OvisConfig,
        compute_dtype: torch.dtype,
        load_device: torch.device,
        device: Any = None,
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        operations = (model_options or {}).get("custom_operations") or comfy.ops.manual_cast
        super().__init__(config, Layers(operations, attention, dtype, device))
        self.eval().requires_grad_(False)
        self.dtypes = {dtype}
        self.compute_dtype = compute_dtype
        self.load_device = load_device
        self.execution_device: torch.device | None = None
        self._seen: dict[int, Tensor] | None = None
        for layer in (*self.llm.model.layers, *self.visual_tokenizer.backbone.trunk["blocks"]):
            layer.register_forward_pre_hook(_stop_if_interrupted)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """ComfyUI's options; layers cannot be chosen, the condition is made of two fixed ones."""
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
        if id(picture) not in self._seen:
            self._seen[id(picture)] = super().see(picture, device, dtype)
        return self._seen[id(picture)]

    def encode_token_weights(self, tokens: dict[str, list[list[tuple]]]) -> tuple[Tensor, None]:
        """Tokens of `OvisTokenizer` -> the condition (B, L, 2 * hidden), float32; there is no pooled output."""
        if SECTION not in tokens:
            raise ValueError("tokens: they were not made by this CLIP; tokenize with the CLIP of Ovis-U1 Load Model.")
        device = self.execution_device or self.load_device
        if len({len(section) for section in tokens[SECTION]}) > 1:
            raise ValueError("tokens: prompts of different length cannot be one batch; encode each by itself.")
        conditions = [
            self.condition([token[0] for token in section], device, self.compute_dtype) for section in tokens[SECTION]
        ]
        return torch.cat(conditions).to(model_management.intermediate_device(), torch.float32), None

    def memory_estimation_function(self, tokens: dict[str, list[list[tuple]]], device: Any = None) -> int:
        """Bytes that `encode_token_weights` needs besides the weights; ComfyUI asks before it loads them."""
        sections = [[token[0] for token in section] for section in tokens.get(SECTION, ())]
        longest = max(map(sequence_length, sections), default=0)
        pictures = [token.tokens for section in sections for token in section if isinstance(token, VisualInput)]
        return self.memory_needed(longest, max(pictures, default=0), self.compute_dtype)

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        """Loads a state dict with the release's names."""
        return self.load_state_dict(sd, strict=False, assign=getattr(self, "can_assign_sd", False))


def build_clip(
    config: OvisConfig, weights: dict[str, Tensor], tokenizer: Path | None, disable_dynamic: bool = False
) -> comfy.sd.CLIP:
    """CLIP from the release's weights (names with their prefixes).

    tokenizer        folder with the release's own files; None: ComfyUI's bundled Qwen2.5 files, which serve as well
    disable_dynamic  no dynamic VRAM, where ComfyUI has it
    """
    load_device = model_management.text_encoder_device()
    dtype, compute_dtype = choose_dtypes(_stored_dtype(weights), load_device)
    target = comfy.supported_models_base.ClipTarget(OvisTokenizer, OvisTextModel)
    target.params = {"config": config, "compute_dtype": compute_dtype, "load_device": load_device}
    kwargs: dict[str, Any] = {
        "tokenizer_data": {"vision": config.vision, "folder": tokenizer},
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "model_options": {"dtype": dtype},
    }
    offered = inspect.signature(comfy.sd.CLIP.__init__).parameters
    if "disable_dynamic" in offered:
        kwargs["disable_dynamic"] = disable_dynamic
    # Newer ComfyUIs take the weights at once, so that they may stay in the file until they are needed.
    if "state_dict" in offered:
        return comfy.sd.CLIP(target, state_dict=weights, **kwargs)
    clip = comfy.sd.CLIP(target, **kwargs)
    clip.load_sd(weights, full_model=True)
    return clip


def choose_dtypes(stored: torch.dtype, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the weights, dtype of the arithmetic) for a text encoder on `device`.

    Weights stay as they are stored unless a command line flag asks for another type, or float32 weights meet a
    device that computes bfloat16. Qwen3's activations overflow float16, so the arithmetic is never that.
    """
    compute = torch.bfloat16 if model_management.should_use_bf16(device) else torch.float32
    if any(getattr(cli_args, flag, False) for flag in DTYPE_FLAGS):
        return model_management.text_encoder_dtype(device), compute
    if stored == torch.float32:
        return compute, compute
    return stored, compute


def _stored_dtype(weights: dict[str, Tensor]) -> torch.dtype:
    return weights["llm.model.embed_tokens.weight"].dtype


def _stop_if_interrupted(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    model_management.throw_exception_if_processing_interrupted()
