"""Ovis-U1 for ComfyUI, without the nodes.

Imports run one way:

`native`   what touches ComfyUI
the rest   plain torch: `networks` and `multimodal` compute; `generation`, `next_token`, `conversation` and
           `cuda_graph` write text; `stored`, `precision`, `carried` and `conversion` handle weights; `pixels` and
           `tokenizer` prepare what goes in
`config`, `layout`, `release`, `checkpoint`, `weights_file`, `prompts`, `sizes`, `schedule`, `download`, `hub`,
`hub_cache`, `dependencies`
           plain Python
"""
