"""The device of the tests: the CPU, or a GPU if OVIS_U1_TEST_DEVICE is `gpu`.

On a GPU ComfyUI computes in float32, without TF32, so that the limits of the CPU hold there too. With the flag for
float32 alone it would run text encoders on the CPU.
"""

from __future__ import annotations

import os

ON_GPU = os.environ.get("OVIS_U1_TEST_DEVICE") == "gpu"
FLAGS = ("gpu_only", "force_fp32") if ON_GPU else ("cpu",)
DEVICE_ARGS = [f"--{flag.replace('_', '-')}" for flag in FLAGS]  # of ComfyUI

if ON_GPU:
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
