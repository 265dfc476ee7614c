"""The published model, AIDC-AI/Ovis-U1-3B: its config, for weights without metadata, and its tokenizer's files."""

from __future__ import annotations

from .config import DecoderConfig, LanguageConfig, OvisConfig, VaeConfig, VisionConfig

# Each of these sets of files is a complete tokenizer.
TOKENIZER_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))

RELEASE = OvisConfig(
    language=LanguageConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=40960,
    ),
    vision=VisionConfig(
        vocab_size=65536,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_channels=3,
        image_size=448,
        patch_size=14,
        hidden_stride=2,
        rms_norm_eps=1e-5,
        qkv_bias=False,
        use_bias=False,
    ),
    decoder=DecoderConfig(
        in_channels=16,
        out_channels=16,
        vec_in_dim=1536,
        context_in_dim=4096,
        hidden_size=1536,
        mlp_ratio=4.0,
        num_heads=12,
        depth=6,
        depth_single_blocks=12,
        axes_dim=(16, 56, 56),
        theta=10000,
        qkv_bias=True,
        base_shift=0.5,
        max_shift=1.15,
    ),
    vae=VaeConfig(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(128, 256, 512, 512), layers_per_block=2
    ),
)
