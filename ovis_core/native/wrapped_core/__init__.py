"""Functions of core that the pack wraps, because ComfyUI has no extension point for them."""
