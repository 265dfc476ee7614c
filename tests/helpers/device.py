"""The device of the tests: the CPU, or a GPU if OVIS_U1_TEST_DEVICE is `gpu`.

On a GPU ComfyUI computes in float32, without TF32, so that the limits of the CPU hold there too.
"""

from __future__ import annotations

import os

ON_GPU = os.environ.get("OVIS_U1_TEST_DEVICE") == "gpu"
GPU_FLAGS = ("force_fp32", "fp32_unet", "fp32_vae", "fp32_text_enc")
DEVICE_ARGS = [f"--{flag.replace('_', '-')}" for flag in GPU_FLAGS] if ON_GPU else ["--cpu"]  # of ComfyUI

if ON_GPU:
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def set_device(args: object) -> None:
    """Sets ComfyUI's flags in this process, before its core is imported."""
    for flag in GPU_FLAGS if ON_GPU else ("cpu",):
        setattr(args, flag, True)
