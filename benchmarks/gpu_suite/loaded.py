"""What `import rest_fast` finds, as JSON: it has to be the package just built, with the modules named as arguments."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main(modules: list[str]) -> None:
    site = Path(sys.path[0])  # child.py put it there
    import rest_fast
    from rest_fast.diagnostics import config_report

    if site.resolve() not in Path(rest_fast.__file__).resolve().parents:
        sys.exit(f"expected rest_fast in {site}, got {rest_fast.__file__}")
    for name in modules:
        module = importlib.import_module(name)
        if site.resolve() not in Path(str(module.__file__)).resolve().parents:
            sys.exit(f"expected {name} in {site}, got {module.__file__}")
    found = config_report()
    print(json.dumps({key: found[key] for key in ("version", "modules", "build", "ops")}, default=str))


if __name__ == "__main__":
    main(sys.argv[1:])
