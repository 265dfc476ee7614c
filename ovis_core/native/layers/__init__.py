"""ComfyUI's layers for the networks, and the weights in them."""
