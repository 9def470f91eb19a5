"""Runs ComfyUI's own executor on the node of ``examples/comfyui``; ComfyUI's Python runs this file, not ours.

``python comfyui_runs.py CHECKOUT WORK MODEL``: ``WORK`` becomes ComfyUI's base folder, where the results are. Prints
one line of JSON: what ComfyUI told its clients in each of the runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path

CHECKOUT, WORK, MODEL = map(Path, sys.argv[1:4])
NODE = Path(__file__).parents[2] / "examples" / "comfyui"


class Server:
    """What the executor wants of a server: it keeps what it is told to send."""

    client_id, last_node_id, last_prompt_id = "me", None, None

    def __init__(self):
        self.sockets_metadata = {"me": {"feature_flags": {"supports_preview_metadata": True}}}
        self.sent = []

    def send_sync(self, event, data, client=None):
        self.sent.append(("IMAGE" if isinstance(event, int) else event, data))  # previews have numbers


def sound_node(io, torch):
    """A node with so many seconds of noise; Load Audio would need torchaudio."""

    class Noise(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Noise", inputs=[io.Int.Input("seconds", max=100)], outputs=[io.Audio.Output()])

        @classmethod
        def execute(cls, seconds):
            wave = 0.1 * torch.randn(1, 1, 16000 * seconds, generator=torch.Generator().manual_seed(0))
            return io.NodeOutput({"waveform": wave, "sample_rate": 16000})

    return Noise


def prompt(seconds, model="toy", **changes):
    speaking = {"photo": ["1", 0], "speech": ["2", 0], "model": model, "seed": seconds, "crop": "center"}
    speaking |= {"paste_back": False, "label": "", "device": "cpu"} | changes
    saving = {"video": ["3", 0], "filename_prefix": "saved", "format": "auto", "codec": "auto"}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "face.png"}},
        "2": {"class_type": "Noise", "inputs": {"seconds": seconds}},
        "3": {"class_type": "RestFastTalkingHead", "inputs": speaking},
        "4": {"class_type": "SaveVideo", "inputs": saving},
    }


def main():
    sys.path.insert(0, str(CHECKOUT))
    import comfy.options

    comfy.options.enable_args_parsing()
    sys.argv = ["main.py", "--cpu", "--base-directory", str(WORK)]
    import comfyui_version
    import execution
    import nodes
    import torch
    from comfy_api.latest import io

    async def load():
        extra = await nodes.load_custom_node(str(CHECKOUT / "comfy_extras" / "nodes_video.py"))
        assert extra and await nodes.load_custom_node(str(WORK / "custom_nodes" / "rest_fast"))

    asyncio.run(load())
    nodes.NODE_CLASS_MAPPINGS["Noise"] = sound_node(io, torch)
    server = Server()
    executor = execution.PromptExecutor(server, execution.CacheType.CLASSIC, {"lru": 0, "ram": 0})

    def run(work, cancel=False):
        server.sent.clear()
        valid, error, _, _ = asyncio.run(execution.validate_prompt("p", work, None))
        if not valid:
            return {"refused": error}
        if cancel:  # as its button does, behind the first picture
            threading.Thread(target=press).start()
        executor.execute(work, "p", {"client_id": "me"}, ["4"])
        told = {event: data for event, data in server.sent if event.startswith("execution")}
        error = told.get("execution_error", {})
        said = {name: error.get(f"exception_{name}") for name in ("type", "message")} if error else None
        return {"told": sorted(told), "error": said, "pictures": sum(event == "IMAGE" for event, _ in server.sent)}

    def press():
        while not any(event == "IMAGE" for event, _ in list(server.sent)):
            time.sleep(0.01)
        nodes.interrupt_processing()

    results = {"version": comfyui_version.__version__, "made": run(prompt(2)), "cancelled": run(prompt(90), True)}
    results["empty"] = run(prompt(0))
    results["unknown"] = run(prompt(1, model="nobody"))
    os.environ["REST_FAST_PYTHON"] = shutil.which("false") or ""
    results["dead"] = run(prompt(1))
    print(json.dumps(results, default=str))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    for name in ("custom_nodes", "input", "models/rest_fast", "output"):
        (WORK / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(MODEL.parent / "face.png", WORK / "input")
    os.symlink(NODE, WORK / "custom_nodes" / "rest_fast")
    os.symlink(MODEL, WORK / "models" / "rest_fast" / "toy")
    main()
