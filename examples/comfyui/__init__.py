"""A node for ComfyUI: put this folder into ``custom_nodes`` as it is, see docs/comfyui.md."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
