"""Entry point through which ComfyUI finds the nodes of this pack."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension that lists our nodes; called by ComfyUI, never at import."""
    from .nodes import TeEFusionExtension

    return TeEFusionExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
