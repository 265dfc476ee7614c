"""A place to run the pack in: a ComfyUI, a Python environment and a base directory. Standard library only."""

from .base import PACK, link_folder, make_base
from .cache import home, remove
from .comfyui import GIVEN, ComfyUI, describe_comfyui, find_comfyui
from .environment import ROOT, check_python, prepare_env
from .processes import end_tree, hand_over, spawn, tail

__all__ = [
    "GIVEN",
    "PACK",
    "ROOT",
    "ComfyUI",
    "check_python",
    "describe_comfyui",
    "end_tree",
    "find_comfyui",
    "hand_over",
    "home",
    "link_folder",
    "make_base",
    "prepare_env",
    "remove",
    "spawn",
    "tail",
]
