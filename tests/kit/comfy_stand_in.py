"""Stand-ins for the parts of ComfyUI that ``examples/comfyui`` uses, by their published names and signatures.

``tests/serving/test_comfyui.py`` runs the node on ComfyUI itself where there is one (``make comfyui``).
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

NODE = Path(__file__).parents[2] / "examples" / "comfyui"


@dataclass
class Socket:
    """An input or output of a node: its type and what the schema says of it."""

    kind: str
    id: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def sockets(kind: str) -> SimpleNamespace:
    return SimpleNamespace(
        Input=lambda id, **options: Socket(kind, id, options), Output=lambda id="", **options: Socket(kind, id, options)
    )


@dataclass
class Schema:
    node_id: str
    display_name: str = ""
    category: str = "sd"
    inputs: list[Socket] = field(default_factory=list)
    outputs: list[Socket] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None):
        self.args, self.ui = args, ui


class VideoFromFile:
    def __init__(self, file: str):
        self.file = file


class InterruptProcessingException(Exception):
    pass


class OutOfMemory(RuntimeError):
    pass


class Comfy:
    """One ComfyUI: its folders, its cancel button, and what it showed of a run."""

    def __init__(self, base: Path):
        self.base = base
        self.cancelled = False
        self.free = 1 << 40  # bytes
        self.shown: list[tuple[float, float, Any]] = []  # done, of, preview

    def set_progress(self, value: float, max_value: float, preview_image: Any = None) -> None:
        self.shown.append((value, max_value, preview_image))

    def modules(self) -> dict[str, ModuleType]:
        kinds = {kind.capitalize(): sockets(kind) for kind in ("IMAGE", "AUDIO", "VIDEO", "INT", "STRING", "BOOLEAN")}
        api = SimpleNamespace(execution=SimpleNamespace(set_progress=self.set_progress))
        parts: dict[str, dict[str, Any]] = {
            "comfy": {},
            "comfy.model_management": {
                "InterruptProcessingException": InterruptProcessingException,
                "OOM_EXCEPTION": OutOfMemory,
                "processing_interrupted": lambda: self.cancelled,
                "get_torch_device": lambda: torch.device("cpu"),
                "get_free_memory": lambda device: self.free,
            },
            "comfy_api": {},
            "comfy_api.latest": {
                "ComfyAPISync": lambda: api,
                "ComfyExtension": object,
                "InputImpl": SimpleNamespace(VideoFromFile=VideoFromFile),
                "io": SimpleNamespace(
                    ComfyNode=object, Schema=Schema, NodeOutput=NodeOutput, Combo=sockets("COMBO"), **kinds
                ),
            },
            "folder_paths": {
                "models_dir": str(self.base / "models"),
                "get_temp_directory": lambda: str(self.base / "temp"),
                "get_output_directory": lambda: str(self.base / "output"),
            },
        }
        made = {name: ModuleType(name) for name in parts}
        for name, contents in parts.items():
            made[name].__dict__.update(contents)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(made[parent], child, made[name])
        return made

    def load(self, monkeypatch: Any) -> Any:
        """Load the node's folder as ComfyUI does: a package whose name is its path. Returns: its module ``nodes``."""
        for name, module in self.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        name = str(self.base / "custom_nodes" / "rest_fast")
        spec = importlib.util.spec_from_file_location(name, NODE / "__init__.py")
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        for part in ("", ".nodes", ".process"):
            monkeypatch.delitem(sys.modules, name + part, raising=False)
        monkeypatch.setitem(sys.modules, name, package)
        spec.loader.exec_module(package)
        assert callable(package.comfy_entrypoint)
        return sys.modules[f"{name}.nodes"]
