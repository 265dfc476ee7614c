"""Name and shape of every tensor in the release's layout, from the config alone."""

from __future__ import annotations

from collections.abc import Iterator

from .config import (
    INDICATORS,
    REFINER_DEPTH,
    TIME_WIDTH,
    DecoderConfig,
    LanguageConfig,
    OvisConfig,
    VaeConfig,
    VisionConfig,
)

LANGUAGE = "llm."
VISION = "visual_tokenizer."
TABLE = "vte."
DECODER = "visual_generator.backbone."
VAE = "visual_generator.vae."

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def tensor_shapes(config: OvisConfig) -> Shapes:
    """Every tensor that a release must have. It may also have `llm.lm_head.weight`, which is tied to the embedding."""
    yield from text_shapes(config.language, config.vision).items()
    yield from _under(DECODER, _decoder(config.decoder))
    yield from _under(VAE, _vae(config.vae))


def decoder_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name without prefix -> shape."""
    return dict(_decoder(config))


def text_shapes(language: LanguageConfig, vision: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of language model, visual tokenizer and visual embedding table."""
    table = {f"{TABLE}weight": (vision.vocab_size, language.hidden_size)}
    return {**dict(_under(LANGUAGE, _language(language))), **dict(_under(VISION, _vision(vision))), **table}


def vae_shapes(config: VaeConfig) -> dict[str, tuple[int, ...]]:
    """Name without prefix -> shape, in diffusers' naming."""
    return dict(_vae(config))


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return ((f"{prefix}{name}", shape) for name, shape in shapes)


def _linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, dim: int) -> Shapes:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)


def _conv(name: str, out: int, into: int, kernel: int = 3) -> Shapes:
    yield f"{name}.weight", (out, into, kernel, kernel)
    yield f"{name}.bias", (out,)


def _language(c: LanguageConfig) -> Shapes:
    d, inner, head = c.hidden_size, c.intermediate_size, c.head_dim
    q, kv = c.num_attention_heads * head, c.num_key_value_heads * head
    yield "model.embed_tokens.weight", (c.vocab_size, d)
    for i in range(c.num_hidden_layers):
        p = f"model.layers.{i}"
        for name, out, into in (("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)):
            yield from _linear(f"{p}.self_attn.{name}_proj", out, into, bias=False)
        for name, out, into in (("gate", inner, d), ("up", inner, d), ("down", d, inner)):
            yield from _linear(f"{p}.mlp.{name}_proj", out, into, bias=False)
        yield f"{p}.self_attn.q_norm.weight", (head,)
        yield f"{p}.self_attn.k_norm.weight", (head,)
        yield f"{p}.input_layernorm.weight", (d,)
        yield f"{p}.post_attention_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)


def _vision(c: VisionConfig) -> Shapes:
    d, inner, patch = c.hidden_size, c.intermediate_size, c.patch_size
    p = "backbone.preprocessor"
    yield from _conv(f"{p}.patchifier.proj", d, c.num_channels, patch)
    yield f"{p}.patchifier.norm.weight", (d,)
    yield f"{p}.pos_embed", (1, (c.image_size // patch) ** 2, d)
    p = "backbone.trunk"
    for i in range(c.num_hidden_layers):
        yield from _linear(f"{p}.blocks.{i}.attn.qkv", 3 * d, d, c.qkv_bias)
        yield from _linear(f"{p}.blocks.{i}.attn.proj", d, d, c.use_bias)
        for name, out, into in (("fc1", inner, d), ("fc2", d, inner), ("fc3", inner, d)):
            yield from _linear(f"{p}.blocks.{i}.mlp.{name}", out, into, c.use_bias)
        yield f"{p}.blocks.{i}.norm_1.weight", (d,)
        yield f"{p}.blocks.{i}.norm_2.weight", (d,)
    yield f"{p}.post_trunk_norm.weight", (d,)
    words = c.vocab_size - INDICATORS
    yield "head.0.weight", (words, d * c.hidden_stride**2)
    yield from _norm("head.1", words)


def _decoder(c: DecoderConfig) -> Shapes:
    d = c.hidden_size
    head, inner, context = d // c.num_heads, int(d * c.mlp_ratio), c.context_in_dim
    yield from _linear("img_in", d, c.in_channels)
    for name, into in (("time_in", TIME_WIDTH), ("vector_in", c.vec_in_dim)):
        yield from _linear(f"{name}.in_layer", d, into)
        yield from _linear(f"{name}.out_layer", d, d)
    yield from _linear("txt_in.input_embedder", d, context)
    yield from _linear("txt_in.c_embedder.linear_1", d, context)
    yield from _linear("txt_in.c_embedder.linear_2", d, d)
    yield "txt_in.cls_token", (1, 1, d)
    for i in range(REFINER_DEPTH):
        r = f"txt_in.individual_token_refiner.blocks.{i}"
        yield from _norm(f"{r}.norm1", d)
        yield from _norm(f"{r}.norm2", d)
        for name, out, into in (
            ("self_attn_qkv", 3 * d, d),
            ("self_attn_proj", d, d),
            ("mlp.fc1", 4 * d, d),
            ("mlp.fc2", d, 4 * d),
            ("adaLN_modulation.1", 2 * d, d),
        ):
            yield from _linear(f"{r}.{name}", out, into)
    for i in range(c.depth):
        r = f"double_blocks.{i}"
        for attn in ("img_attn", "img_self_attn", "txt_attn"):
            yield from _linear(f"{r}.{attn}.qkv", 3 * d, d, c.qkv_bias)
            yield from _linear(f"{r}.{attn}.proj", d, d)
            yield f"{r}.{attn}.norm.query_norm.scale", (head,)
            yield f"{r}.{attn}.norm.key_norm.scale", (head,)
        for stream, branches in (("img", 3), ("txt", 2)):
            yield from _linear(f"{r}.{stream}_mod.lin", 3 * branches * d, d)
            yield from _linear(f"{r}.{stream}_mlp.0", inner, d)
            yield from _linear(f"{r}.{stream}_mlp.2", d, inner)
    for i in range(c.depth_single_blocks):
        r = f"single_blocks.{i}"
        yield from _linear(f"{r}.linear1", 3 * d + inner, d)
        yield from _linear(f"{r}.linear2", d, d + inner)
        yield from _linear(f"{r}.modulation.lin", 3 * d, d)
        yield f"{r}.norm.query_norm.scale", (head,)
        yield f"{r}.norm.key_norm.scale", (head,)
    yield from _linear("final_layer.linear", c.out_channels, d)
    yield from _linear("final_layer.adaLN_modulation.1", 2 * d, d)


def _vae(c: VaeConfig) -> Shapes:
    widths, layers, z = c.block_out_channels, c.layers_per_block, c.latent_channels

    def resnet(name: str, into: int, out: int) -> Shapes:
        yield from _norm(f"{name}.norm1", into)
        yield from _conv(f"{name}.conv1", out, into)
        yield from _norm(f"{name}.norm2", out)
        yield from _conv(f"{name}.conv2", out, out)
        if into != out:
            yield from _conv(f"{name}.conv_shortcut", out, into, 1)

    def middle(name: str, width: int) -> Shapes:
        yield from resnet(f"{name}.resnets.0", width, width)
        yield from resnet(f"{name}.resnets.1", width, width)
        yield from _norm(f"{name}.attentions.0.group_norm", width)
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _linear(f"{name}.attentions.0.{layer}", width, width)

    yield from _conv("encoder.conv_in", widths[0], c.in_channels)
    into = widths[0]
    for i, out in enumerate(widths):
        for j in range(layers):
            yield from resnet(f"encoder.down_blocks.{i}.resnets.{j}", into, out)
            into = out
        if i + 1 < len(widths):
            yield from _conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", out, out)
    yield from middle("encoder.mid_block", into)
    yield from _norm("encoder.conv_norm_out", into)
    yield from _conv("encoder.conv_out", 2 * z, into)
    yield from _conv("quant_conv", 2 * z, 2 * z, 1)
    yield from _conv("post_quant_conv", z, z, 1)
    yield from _conv("decoder.conv_in", into, z)
    yield from middle("decoder.mid_block", into)
    for i, out in enumerate(reversed(widths)):
        for j in range(layers + 1):
            yield from resnet(f"decoder.up_blocks.{i}.resnets.{j}", into, out)
            into = out
        if i + 1 < len(widths):
            yield from _conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", out, out)
    yield from _norm("decoder.conv_norm_out", into)
    yield from _conv("decoder.conv_out", c.out_channels, into)
