"""Images that the model judges and edits until they fit a prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..ovis_core.native import improving
from ..ovis_core.native.compat import FIXED_SEED
from ..ovis_core.text.prompts import ANSWER_SLOT, FITS, WHAT_TO_CHANGE
from ..ovis_core.text.rounds import Goal
from .checks import checked, need_prompt, need_words
from .sample import IMG_CFG, STEPS, TXT_CFG
from .schema import ADVANCED, CATEGORY, HIDDEN, LoopState, found_by

EDIT_TXT_CFG = TXT_CFG | {
    "default": 6.0,
    "tooltip": "How strongly to follow the instruction. The authors use 6 for edits. 1: no guidance by the text.",
}
EDIT_IMG_CFG = IMG_CFG | {
    "tooltip": "How strongly to keep the image. The authors use 1.5; raise it if an edit changes too much."
}


class OvisU1Improve(io.ComfyNode):
    """Images and a prompt -> the images, edited until they fit it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Improve",
            **found_by("loop", "refine image", "self correction", "agent"),
            display_name="Ovis-U1 Improve",
            category=CATEGORY,
            description=(
                "Judges how well an image fits a prompt. If the score is too low, the model says what to change, edits "
                "the image and judges the edit, round by round. Returns the image with the highest score, so it is "
                "never worse than the one that came in, by the model's own score."
            ),
            is_output_node=True,
            enable_expand=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Ovis-U1 Load Model."),
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.Vae.Input("vae", tooltip="The VAE of Ovis-U1 Load Model."),
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The image to improve, of any size and from any source. Each image of a batch is improved, one "
                        "after the other. An edit has the size of its image."
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
                        "An image with this score or a higher one is finished. The score is the probability of yes, as "
                        "in Ovis-U1 Judge. 0: only judge. 1: use all rounds."
                    ),
                ),
                io.Int.Input(
                    "rounds",
                    default=3,
                    min=0,
                    max=50,
                    tooltip=(
                        "Maximum number of edits of an image. If you raise it and nothing else, the next run continues "
                        "after the rounds of the last one. 0: only judge."
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
                    tooltip="A question that can be answered with yes or no, for the score. {prompt} is the prompt.",
                ),
                io.String.Input(
                    "question",
                    **ADVANCED,
                    multiline=True,
                    default=WHAT_TO_CHANGE,
                    optional=True,
                    tooltip=(
                        "A question about an image whose score is too low. The first line of the answer replaces "
                        "{answer} in instruction. {prompt} is the prompt."
                    ),
                ),
                io.String.Input(
                    "instruction",
                    **ADVANCED,
                    multiline=True,
                    default=ANSWER_SLOT,
                    optional=True,
                    tooltip=(
                        "The instruction of the edit. {answer} is the answer to question, {prompt} the prompt. Without "
                        "{answer}, the question is not asked."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "best", display_name="best", tooltip="The image with the highest score, or one for each of a batch."
                ),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The score of each image of best, from 0 to 1.",
                ),
                io.String.Output(
                    "log",
                    display_name="log",
                    tooltip="Text with the instruction and the score of each round, and the reason why it ended.",
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
        return io.NodeOutput(*first.outputs, ui=ui.PreviewText(first.text), expand=first.graph)


class OvisU1ImproveStep(io.ComfyNode):
    """A step of the loop -> its result, or the nodes that come next. Only `OvisU1Improve` adds it."""

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
                io.Image.Input("edit", optional=True, tooltip="The edit that the score is of."),
            ],
            outputs=[
                io.Image.Output("best", display_name="best", tooltip="The images with the highest scores."),
                io.AnyType.Output("scores", display_name="scores", tooltip="Their scores."),
                io.String.Output("log", display_name="log", tooltip="The log."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, loop: Any, score: Any = None, answer: Any = None, edit: Any = None) -> io.NodeOutput:
        made = improving.step(loop, score, answer, edit)
        last = made.graph is None
        return io.NodeOutput(*made.outputs, ui=ui.PreviewText(made.text) if last else None, expand=made.graph)
