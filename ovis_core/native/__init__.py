"""Ovis-U1 as ComfyUI's own MODEL, CLIP, VAE and GUIDER."""
