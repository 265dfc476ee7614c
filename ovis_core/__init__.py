"""Ovis-U1 for ComfyUI, without the nodes.

Imports run one way:

`native`   what touches ComfyUI
the rest   plain torch: `networks` and `multimodal` compute; `text` encodes, decodes and keeps conversations;
           `weights` finds, checks, reads, casts and writes weights; `pixels` prepares images; `improvement` decides
           the rounds of Ovis-U1 Improve and caches them
`special_tokens`, `text.prompts`, `sizes`, `schedule`, `improvement.rounds`, and the modules of `weights` that read
configs and headers or download
           plain Python
"""
