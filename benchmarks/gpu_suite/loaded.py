"""What `import rest_fast` finds, as JSON: it has to be the package just built, with the modules named as arguments."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main(modules: list[str]) -> None:
    site = Path(sys.path[0])  # child.py put it there
    import torch

    import rest_fast
    from rest_fast import ops
    from rest_fast.ops.dispatch import Spec

    for name in ["rest_fast", *modules]:
        module = importlib.import_module(name)
        if site.resolve() not in Path(str(module.__file__)).resolve().parents:
            sys.exit(f"expected {name} in {site}, got {module.__file__}")
    rest_fast.show_config()
    built = {k: v for k, v in vars(importlib.import_module("rest_fast._build_info")).items() if k.isupper()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    chosen = {op.name: {n: op.report(Spec(device, d), None) for n, d in dtypes.items()} for op in ops.ALL}
    print(
        json.dumps({"version": rest_fast.__version__, "modules": modules, "build": built, "ops": chosen}, default=str)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
