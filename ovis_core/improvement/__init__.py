"""The loop that improves an image, without ComfyUI: its rounds, and a cache of them."""
