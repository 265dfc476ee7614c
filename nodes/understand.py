"""Questions, images and videos -> text and scores."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovis_core.native.compat import ADVANCED, FIXED_SEED, KEEPS_TEXT, growing_inputs, grown, search_aliases
from ..ovis_core.native.core_inputs import MAX_FRAMES
from ..ovis_core.native.page.results import text_result
from ..ovis_core.native.understanding import as_one_text, judge, understand_images
from ..ovis_core.text.decoding import GREEDY, Sampling
from ..ovis_core.text.prompts import FITS, PROMPT_SLOT
from .checks import checked, need_prompt
from .schema import CATEGORY, IMAGES, History, image_names

HISTORY_SLOT = 1
DEFAULT_SAMPLING = Sampling()
FURTHER = image_names(9)


class OvisU1Understand(io.ComfyNode):
    """Question, images or video -> text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Understand",
            **search_aliases("describe image", "image caption", "vqa", "chat", "vlm", "video"),
            display_name="Ovis-U1 Understand",
            category=CATEGORY,
            description=(
                "Answers a question, with or without images or a video. The answer appears on the node while it is "
                "generated. Connect history to another Ovis-U1 Understand to continue the conversation."
            ),
            is_output_node=True,
            **KEEPS_TEXT,
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="Describe this image.",
                    tooltip=(
                        "The question or instruction. If there are several images, call them Image 1, Image 2 and so "
                        "on."
                    ),
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "One image, or a batch of several images. Connect images of other sizes to image_2 and so on."
                    ),
                ),
                io.MultiType.Input(
                    "video",
                    types=[io.Image, io.Video],
                    optional=True,
                    tooltip=(
                        "A video, for example from Load Video, or its frames as a batch of images. For a video file, "
                        "only the frames that the model sees are kept in memory. Connect either images or a video."
                    ),
                ),
                History.Input(
                    "history",
                    optional=True,
                    tooltip="The conversation that this question continues, from another Ovis-U1 Understand.",
                ),
                io.Int.Input(
                    "max_frames",
                    default=MAX_FRAMES,
                    min=1,
                    max=160,
                    optional=True,
                    tooltip=(
                        "Maximum number of frames. A longer video is sampled evenly down to this many. More frames "
                        "take more time and memory."
                    ),
                ),
                io.Int.Input(
                    "max_new_tokens",
                    default=512,
                    min=1,
                    max=32768,
                    optional=True,
                    tooltip=(
                        "Maximum length of the answer, in tokens. A token is about three quarters of a word. Raise "
                        "this value if answers are cut off. Memory is reserved for all of these tokens, 0.11 MB each."
                    ),
                ),
                io.Boolean.Input(
                    "thinking",
                    default=False,
                    optional=True,
                    tooltip=(
                        "The model reasons before it answers. This takes many more tokens: raise max_new_tokens too."
                    ),
                ),
                io.Boolean.Input(
                    "sampling",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Off: always the most likely token, so the answer is always the same; of the sampling "
                        "settings, only repetition_penalty has an effect. On: tokens are sampled, so answers vary "
                        "with the seed."
                    ),
                ),
                io.Float.Input(
                    "temperature",
                    **ADVANCED,
                    default=DEFAULT_SAMPLING.temperature,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    tooltip="Higher values give more varied answers, lower values more predictable ones.",
                ),
                io.Float.Input(
                    "top_p",
                    **ADVANCED,
                    default=DEFAULT_SAMPLING.top_p,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "Samples only from the most likely tokens whose probabilities together reach this value. 1: "
                        "from all tokens."
                    ),
                ),
                io.Int.Input(
                    "top_k",
                    **ADVANCED,
                    default=DEFAULT_SAMPLING.top_k,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="Samples only from this many of the most likely tokens. 0: from all tokens.",
                ),
                io.Float.Input(
                    "min_p",
                    **ADVANCED,
                    default=DEFAULT_SAMPLING.min_p,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "Samples only from tokens whose probability is at least this fraction of the most likely "
                        "token's probability. 0: from all tokens."
                    ),
                ),
                io.Float.Input(
                    "repetition_penalty",
                    **ADVANCED,
                    default=DEFAULT_SAMPLING.repetition_penalty,
                    min=0.1,
                    max=5.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "Above 1: tokens that are already in the answer become less likely. Raise it if the answer "
                        "repeats itself. 1: no effect."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=DEFAULT_SAMPLING.seed,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=FIXED_SEED,
                    optional=True,
                    tooltip="Sampling seed. It has an effect only if sampling is on.",
                ),
                *growing_inputs(
                    IMAGES,
                    io.Image.Input(
                        "image",
                        optional=True,
                        tooltip=(
                            "Another image or batch, of any size. Its images are numbered after those of the inputs "
                            "before it: if image is one image, image_2 is Image 2 in the prompt."
                        ),
                    ),
                    FURTHER,
                ),
                io.String.Input(
                    "system_prompt",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip=(
                        "Instructions for the whole conversation, for example the language or the length of the "
                        "answers. Enter it with the first question only: history keeps it. The model was trained "
                        "without a system prompt."
                    ),
                ),
                io.Boolean.Input(
                    "each_image",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Off: one answer about all images. On: the question is asked about each image separately. The "
                        "outputs are then lists, and the nodes after this one run once for each image. It has no "
                        "effect on a video."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "text",
                    display_name="text",
                    is_output_list=True,
                    tooltip="The answer, or one answer for each image if each_image is on.",
                ),
                History.Output(
                    "history_out",
                    display_name="history",
                    is_output_list=True,
                    tooltip=(
                        "The conversation with this question and answer, for another Ovis-U1 Understand. If each_image "
                        "is on, one conversation for each image."
                    ),
                ),
                io.String.Output(
                    "reasoning",
                    display_name="reasoning",
                    is_output_list=True,
                    tooltip=(
                        "The model's reasoning before the answer, or before each answer if each_image is on. Empty if "
                        "thinking is off."
                    ),
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
        temperature: float = DEFAULT_SAMPLING.temperature,
        top_p: float = DEFAULT_SAMPLING.top_p,
        top_k: int = DEFAULT_SAMPLING.top_k,
        min_p: float = DEFAULT_SAMPLING.min_p,
        repetition_penalty: float = DEFAULT_SAMPLING.repetition_penalty,
        seed: int = DEFAULT_SAMPLING.seed,
        system_prompt: str = "",
        each_image: bool = False,
        **more: Any,
    ) -> io.NodeOutput:
        batches = [*(() if image is None else (image,)), *grown(IMAGES, FURTHER, more).values()]
        images = [one for batch in batches for one in batch]
        if images and video is not None:
            raise ValueError("video: expected either images or a video, got both; disconnect image or video.")
        if not sampling:
            temperature = GREEDY.temperature
        options = {
            "video": () if video is None else video,
            "max_frames": max_frames,
            "max_new_tokens": max_new_tokens,
            "thinking": thinking,
            "sampling": Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed=seed),
            "before": history,
            "keep": cls._is_connected(HISTORY_SLOT),
            "system_prompt": system_prompt,
        }
        answers = understand_images(clip, prompt, images, each_image, **options)
        return io.NodeOutput(
            [answer.text for answer in answers],
            [answer.conversation for answer in answers],
            [answer.reasoning for answer in answers],
            ui=text_result(as_one_text(answers)),
        )

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
            **search_aliases("score image", "rank images", "best of"),
            display_name="Ovis-U1 Judge",
            category=CATEGORY,
            description=(
                "Asks a yes-or-no question about each image of a batch, and ranks the images by the probability that "
                "the model gives to yes. Use it to keep the best of several images."
            ),
            is_output_node=True,
            **KEEPS_TEXT,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.Image.Input("images", tooltip="The images to judge, as a batch."),
                io.String.Input(
                    "question",
                    multiline=True,
                    default=FITS,
                    tooltip="A question that can be answered with yes or no. {prompt} is replaced by the prompt.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip=(
                        "The text that replaces {prompt} in the question. Leave it empty if the question does not "
                        "contain {prompt}."
                    ),
                ),
            ],
            outputs=[
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip=(
                        "A number from 0 to 1 for each image, in order: the probability of yes, normalised over yes "
                        "and no."
                    ),
                ),
                io.Image.Output("best", display_name="best", tooltip="The image with the highest score."),
                io.String.Output(
                    "ranking",
                    display_name="ranking",
                    tooltip="Text with a line for each image and its score, highest score first.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, clip: Any, images: Any, question: str, prompt: str) -> io.NodeOutput:
        need_prompt(prompt, question=question)
        verdict = judge(clip, images, question.replace(PROMPT_SLOT, prompt))
        best = images[verdict.order[0], None]
        return io.NodeOutput(verdict.scores, best, verdict.ranking, ui=text_result(verdict.ranking))
