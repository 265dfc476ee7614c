"""The report's benchmarks: data -> records -> ComfyUI -> files that the official scorers read."""
