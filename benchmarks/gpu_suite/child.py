"""Run a module, or a script, on the package that was just built: ``child.py SITE MODULE_OR_SCRIPT ARGUMENTS...``

SITE comes first on the path, not the current folder, which holds the sources without compiled modules. The import
hook of an editable install, which would win over any path, is taken off. A script finds ``benchmarks`` and ``tests`` of
this tree by their names.
"""

import runpy
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def name_folders() -> None:
    for name in ("benchmarks", "tests"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT / name)]
        sys.modules[name] = package


def main() -> None:
    site, target = sys.argv[1:3]
    sys.argv[:] = sys.argv[2:]
    sys.path[0] = site
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
    if target.endswith(".py"):
        name_folders()
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


main()
