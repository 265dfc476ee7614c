"""The model's networks in plain torch.

Layers come from an `operations` namespace (`torch.nn`, or one of ComfyUI's) and attention from a function, so
that the same code runs under ComfyUI's memory manager and without it.
"""
