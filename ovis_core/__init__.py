"""Ovis-U1 for ComfyUI, without the nodes.

Imports run one way: `native` (what touches ComfyUI) -> `multimodal`, `networks`, `pixels`, `checkpoint` (plain
torch) -> `config`, `prompts`, `sizes`, `schedule`, `tokenizer` (plain Python).
"""
