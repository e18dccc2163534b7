"""What we attach to a MODEL of the host: names, and what they say about it."""

from comfy.patcher_extension import WrappersMP

WRAPPER_KEY = "teefusion"
"""Of wrappers and callbacks."""
STUDENT_KEY = "teefusion_student"
"""Of a student: the metadata of its file, a dict."""
EMBEDDER_KEY = "teefusion_embedder"
"""Of a student: its GuidanceEmbedder, or None."""
LORA_KEY = "teefusion_lora"
"""Of a student: the host's patches of its guidance LoRA."""
STRENGTH_KEY = "teefusion_lora_strength"
"""Of a student whose guidance LoRA is applied: its strength."""


def why_no_base(model_patcher) -> str | None:
    """Return why a MODEL cannot be the base of a student, or None; the unpatched weights do not show it."""
    if model_patcher.get_attachment(STUDENT_KEY) is not None:
        return "is already a student"
    if model_patcher.get_wrappers(WrappersMP.APPLY_MODEL, WRAPPER_KEY):
        return "comes out of TeEFusion Conditioning"
    return None
