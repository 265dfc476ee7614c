"""Ovis-U1 for ComfyUI, without the nodes.

Imports run one way:

`native`   what touches ComfyUI
the rest   plain torch: `networks` and `multimodal` compute; `text` encodes, decodes and keeps conversations;
           `weights` finds, checks, reads, casts and writes weights; `pixels` prepares images
`special_tokens`, `text.prompts`, `sizes`, `schedule`, and of `weights` what reads configs and headers or downloads
           plain Python
"""
