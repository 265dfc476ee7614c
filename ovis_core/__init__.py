"""Ovis-U1 for ComfyUI, without the nodes.

Imports run one way:

`native`   what touches ComfyUI
the rest   plain torch: `networks` and `multimodal` compute; `text` encodes, decodes and keeps conversations;
           `stored`, `precision`, `carried` and `conversion` handle weights; `pixels` prepares pictures
`config`, `layout`, `release`, `checkpoint`, `weights_file`, `special_tokens`, `text.prompts`, `sizes`, `schedule`,
`download`, `hub`, `hub_cache`, `dependencies`
           plain Python
"""
