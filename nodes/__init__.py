"""The pack's nodes, one file for each verb."""

from comfy_api.latest import ComfyExtension, io

from .decode import OvisU1Decode
from .download import OvisU1Download
from .encode import OvisU1EditEncode, OvisU1TextEncode
from .improve import OvisU1Improve, OvisU1ImproveResult, OvisU1ImproveStep
from .load import OvisU1Loader, OvisU1LoadParts
from .merge import OvisU1ModelMerge
from .refine import OvisU1Refine
from .sample import OvisU1Guider, OvisU1Sampler, OvisU1Scheduler
from .understand import OvisU1Judge, OvisU1Understand


class OvisU1Extension(ComfyExtension):
    """The extension that ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return [
            OvisU1Loader,
            OvisU1LoadParts,
            OvisU1TextEncode,
            OvisU1EditEncode,
            OvisU1Refine,
            OvisU1Scheduler,
            OvisU1Guider,
            OvisU1Sampler,
            OvisU1Decode,
            OvisU1Understand,
            OvisU1Judge,
            OvisU1Improve,
            OvisU1ImproveStep,
            OvisU1ImproveResult,
            OvisU1Download,
            OvisU1ModelMerge,
        ]
