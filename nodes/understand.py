"""Images and questions -> text and scores."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..ovis_core.native.compat import FIXED_SEED
from ..ovis_core.native.tokens import MAX_FRAMES
from ..ovis_core.native.understanding import judge, understand
from ..ovis_core.text.decoding import GREEDY, Sampling
from .checks import checked
from .schema import ADVANCED, CATEGORY, History, found_by

HISTORY_SLOT = 1
PROMPT_SLOT = "{prompt}"
DRAWN = Sampling()


class OvisU1Understand(io.ComfyNode):
    """Question, images or video -> text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Understand",
            **found_by("describe image", "image caption", "vqa", "chat", "vlm", "video"),
            display_name="Ovis-U1 Understand",
            category=CATEGORY,
            description=(
                "Answers questions about images or a video, and questions without either. The text appears on the node "
                "while it is generated. Connect history to another Ovis-U1 Understand to continue the conversation."
            ),
            is_output_node=True,
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="Describe this image.",
                    tooltip="The question. Refer to several images as Image 1, Image 2 and so on.",
                ),
                io.Image.Input("image", optional=True, tooltip="One image, or a batch of several."),
                io.Image.Input(
                    "video", optional=True, tooltip="Frames as a batch, for example from Get Video Components."
                ),
                History.Input("history", optional=True, tooltip="The conversation that this question continues."),
                io.Int.Input(
                    "max_frames",
                    default=MAX_FRAMES,
                    min=1,
                    max=160,
                    optional=True,
                    tooltip="A longer video is sampled evenly down to this many frames.",
                ),
                io.Int.Input(
                    "max_new_tokens",
                    default=512,
                    min=1,
                    max=32768,
                    optional=True,
                    tooltip=(
                        "Maximum length of the answer, in tokens. A token is about three quarters of a word. Memory "
                        "is reserved for "
                        "all of them, 0.11 MB each, so set it near what you need."
                    ),
                ),
                io.Boolean.Input(
                    "thinking",
                    default=False,
                    optional=True,
                    tooltip="Let the model reason before it answers. Takes many more tokens: raise max_new_tokens.",
                ),
                io.Boolean.Input(
                    "sampling",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Off: always the most likely token; of the settings below only repetition_penalty has an "
                        "effect. On: tokens are sampled."
                    ),
                ),
                io.Float.Input(
                    "temperature",
                    **ADVANCED,
                    default=DRAWN.temperature,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    tooltip="Above 1: less likely tokens are sampled more often. Toward 0: the most likely token.",
                ),
                io.Float.Input(
                    "top_p",
                    **ADVANCED,
                    default=DRAWN.top_p,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Sample from the most likely tokens that together have this probability. 1: from all.",
                ),
                io.Int.Input(
                    "top_k",
                    **ADVANCED,
                    default=DRAWN.top_k,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="Sample from this many of the most likely tokens. 0: from all.",
                ),
                io.Float.Input(
                    "min_p",
                    **ADVANCED,
                    default=DRAWN.min_p,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "Sample from tokens with at least this fraction of the most likely token's probability. 0: "
                        "from all."
                    ),
                ),
                io.Float.Input(
                    "repetition_penalty",
                    **ADVANCED,
                    default=DRAWN.repetition_penalty,
                    min=0.1,
                    max=5.0,
                    step=0.01,
                    optional=True,
                    tooltip="Above 1: tokens already in the answer become less likely. 1: no effect.",
                ),
                io.Int.Input(
                    "seed",
                    default=DRAWN.seed,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=FIXED_SEED,
                    optional=True,
                    tooltip="Sampling seed.",
                ),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The answer."),
                History.Output(
                    "history_out", display_name="history", tooltip="The conversation with this question and answer."
                ),
                io.String.Output(
                    "reasoning",
                    display_name="reasoning",
                    tooltip="The model's reasoning before the answer, with thinking on.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip: Any,
        prompt: str,
        image: Any = None,
        video: Any = None,
        history: Any = None,
        max_frames: int = MAX_FRAMES,
        max_new_tokens: int = 512,
        thinking: bool = False,
        sampling: bool = False,
        temperature: float = DRAWN.temperature,
        top_p: float = DRAWN.top_p,
        top_k: int = DRAWN.top_k,
        min_p: float = DRAWN.min_p,
        repetition_penalty: float = DRAWN.repetition_penalty,
        seed: int = DRAWN.seed,
    ) -> io.NodeOutput:
        images, frames = (() if batch is None else batch for batch in (image, video))
        if len(images) and len(frames):
            raise ValueError("video: expected either images or a video, got both; disconnect image or video.")
        if not sampling:
            temperature = GREEDY.temperature
        answer = understand(
            clip,
            prompt,
            images,
            frames,
            max_frames,
            max_new_tokens,
            thinking,
            Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed=seed),
            history,
            keep=cls._is_connected(HISTORY_SLOT),
        )
        return io.NodeOutput(answer.text, answer.conversation, answer.reasoning, ui=ui.PreviewText(answer.text))

    @classmethod
    def _is_connected(cls, slot: int) -> bool:
        prompt, link = cls.hidden.dynprompt, [cls.hidden.unique_id, slot]
        return any(link in prompt.get_node(node)["inputs"].values() for node in prompt.all_node_ids())


class OvisU1Judge(io.ComfyNode):
    """Images and a yes-or-no question -> a score for each image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Judge",
            **found_by("score image", "rank images", "best of"),
            display_name="Ovis-U1 Judge",
            category=CATEGORY,
            description=(
                "Asks a yes-or-no question about each image and compares the model's probability of yes with that of "
                "no: make four images, keep the best."
            ),
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.Image.Input("images", tooltip="A batch of images."),
                io.String.Input(
                    "question",
                    multiline=True,
                    default='Does this image fit the description "{prompt}"? Answer yes or no.',
                    tooltip="A question that can be answered with yes or no. {prompt} stands for the prompt.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="The text that replaces {prompt} in the question.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="For each image, in order: the probability of yes, normalised over yes and no.",
                ),
                io.Image.Output("best", display_name="best", tooltip="The image with the highest score."),
                io.String.Output("ranking", display_name="ranking", tooltip="All images, highest score first."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, clip: Any, images: Any, question: str, prompt: str) -> io.NodeOutput:
        if not prompt.strip() and PROMPT_SLOT in question:
            raise ValueError(
                f"prompt: expected a text for {PROMPT_SLOT} in question, got none; write a prompt, or remove "
                f"{PROMPT_SLOT}."
            )
        if prompt.strip() and PROMPT_SLOT not in question:
            raise ValueError(
                f"question: expected {PROMPT_SLOT}, because there is a prompt, got none; add {PROMPT_SLOT}, or clear "
                "prompt."
            )
        verdict = judge(clip, images, question.replace(PROMPT_SLOT, prompt))
        best = images[verdict.order[0], None]
        return io.NodeOutput(verdict.scores, best, verdict.ranking, ui=ui.PreviewText(verdict.ranking))
