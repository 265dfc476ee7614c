"""The model's networks in plain torch.

Layers and attention come from outside (`layers.Layers`), so that the same code runs under ComfyUI's memory manager and
without it.
"""
