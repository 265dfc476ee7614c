"""Images that the model judges and edits, so that they fit a prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovis_core.improvement.rounds import Goal
from ..ovis_core.native import improving
from ..ovis_core.native.compat import ADVANCED, FIXED_SEED, HIDDEN, KEEPS_TEXT, search_aliases
from ..ovis_core.text.prompts import ANSWER_SLOT, FITS, WHAT_TO_CHANGE
from .checks import checked, need_prompt, need_words
from .sample import IMG_CFG, STEPS, TXT_CFG
from .schema import CATEGORY, LoopState

EDIT_TXT_CFG = TXT_CFG | {
    "default": 6.0,
    "tooltip": "How strongly to follow the instruction. The authors use 6 for edits. 1: no guidance by the text.",
}
EDIT_IMG_CFG = IMG_CFG | {
    "tooltip": "How strongly to keep the image. The authors use 1.5; raise it if an edit changes too much."
}


class OvisU1Improve(io.ComfyNode):
    """Images and a prompt -> the best edits of the images, or the images themselves."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Improve",
            **search_aliases("loop", "refine image", "self correction", "agent"),
            display_name="Ovis-U1 Improve",
            category=CATEGORY,
            description=(
                "Scores how well an image fits a prompt. While the score is too low, the model proposes a change "
                "and edits the image, and the edit is scored. Returns the image with the highest score; this can be "
                "the input image."
            ),
            is_output_node=True,
            **KEEPS_TEXT,
            enable_expand=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Ovis-U1 Load Model."),
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.Vae.Input("vae", tooltip="The VAE of Ovis-U1 Load Model."),
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The image to improve, of any size and from any source. Each image of a batch is improved, one "
                        "after the other. The result keeps the size of the input."
                    ),
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="The text that the image should fit. It replaces {prompt} in the texts below.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip=(
                        "Stop when an image has at least this score: the probability of yes, as in Ovis-U1 Judge. "
                        "Raise it for stricter results. 0: only judge."
                    ),
                ),
                io.Int.Input(
                    "rounds",
                    default=3,
                    min=0,
                    max=50,
                    tooltip=(
                        "Maximum number of edits for each image. If only this value or the threshold is changed, the "
                        "next run computes only the new rounds. 0: only judge."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=FIXED_SEED,
                    tooltip="Seed of the first edit. Each later round uses the next number.",
                ),
                io.Int.Input("steps", **STEPS),
                io.Float.Input("txt_cfg", **EDIT_TXT_CFG),
                io.Float.Input("img_cfg", **EDIT_IMG_CFG),
                io.String.Input(
                    "judge_question",
                    **ADVANCED,
                    multiline=True,
                    default=FITS,
                    optional=True,
                    tooltip=(
                        "A question that can be answered with yes or no, for the score. {prompt} is replaced by the "
                        "prompt."
                    ),
                ),
                io.String.Input(
                    "question",
                    **ADVANCED,
                    multiline=True,
                    default=WHAT_TO_CHANGE,
                    optional=True,
                    tooltip=(
                        "A question about an image whose score is too low. The first line of the answer replaces "
                        "{answer} in instruction. {prompt} is replaced by the prompt."
                    ),
                ),
                io.String.Input(
                    "instruction",
                    **ADVANCED,
                    multiline=True,
                    default=ANSWER_SLOT,
                    optional=True,
                    tooltip=(
                        "The instruction for the edit. {answer} is replaced by the answer to question, {prompt} by the "
                        "prompt. If it does not contain {answer}, question is not asked."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("best", display_name="best", tooltip="The best version of each image."),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The score of each image in best, from 0 to 1.",
                ),
                io.String.Output(
                    "log",
                    display_name="log",
                    tooltip="Text with the instruction and the score of each round, and why the rounds ended.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        image: Any,
        prompt: str,
        threshold: float,
        rounds: int,
        seed: int,
        steps: int,
        txt_cfg: float,
        img_cfg: float,
        judge_question: str = FITS,
        question: str = WHAT_TO_CHANGE,
        instruction: str = ANSWER_SLOT,
    ) -> io.NodeOutput:
        goal = Goal(prompt, threshold, rounds, question, instruction)
        asked = {"question": question} if goal.asks else {}
        need_words(judge_question=judge_question, instruction=instruction, **asked)
        need_prompt(prompt, judge_question=judge_question, instruction=instruction, **asked)
        parts = {"model": model, "clip": clip, "vae": vae}
        sampler = {"steps": steps, "txt_cfg": txt_cfg, "img_cfg": img_cfg}
        first = improving.start(goal, image, parts, sampler, seed, judge_question)
        return io.NodeOutput(*first.outputs, ui=first.ui, expand=first.graph)


class OvisU1ImproveStep(io.ComfyNode):
    """A step of an image's loop -> the results so far, or the nodes that come next. Only `OvisU1Improve` adds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=improving.STEP,
            **HIDDEN,
            display_name="Ovis-U1 Improve (step)",
            category=CATEGORY,
            description="A step of Ovis-U1 Improve, which adds this node itself.",
            enable_expand=True,
            inputs=[
                LoopState.Input("loop", tooltip="The rounds so far."),
                io.AnyType.Input("score", optional=True, tooltip="The score of the image, or of the edit."),
                io.AnyType.Input("answer", optional=True, tooltip="The model's answer."),
                io.Image.Input("edit", optional=True, tooltip="The edit that was scored."),
                io.AnyType.Input("earlier", optional=True, tooltip="The results of the images before this one."),
            ],
            outputs=[
                io.AnyType.Output("results", display_name="results", tooltip="The results of the images so far."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, loop: Any, score: Any = None, answer: Any = None, edit: Any = None, earlier: Any = None
    ) -> io.NodeOutput:
        made = improving.step(loop, score, answer, edit, earlier)
        return io.NodeOutput(*made.outputs, expand=made.graph)


class OvisU1ImproveResult(io.ComfyNode):
    """The results of all images -> the outputs of `OvisU1Improve`. Only that node adds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=improving.RESULT,
            **HIDDEN,
            display_name="Ovis-U1 Improve (result)",
            category=CATEGORY,
            description="The last node of Ovis-U1 Improve, which adds this node itself.",
            inputs=[
                LoopState.Input("loop", tooltip="The loop of the last image."),
                io.AnyType.Input("results", tooltip="The results of all images."),
            ],
            outputs=[
                io.Image.Output("best", display_name="best", tooltip="The images with the highest scores."),
                io.AnyType.Output("scores", display_name="scores", tooltip="Their scores."),
                io.String.Output("log", display_name="log", tooltip="The log."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, loop: Any, results: Any) -> io.NodeOutput:
        return io.NodeOutput(*improving.finish(loop, results).outputs)
