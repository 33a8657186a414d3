"""The package's modules and what each imports, read from their source."""

import ast
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"
COPIED = SRC / "fvlm/use/exported"  # files of exported folders; no module of the package imports them
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SRC / "fvlm").rglob("*.py"))
    if path.parent != COPIED
}


def imports(module: str) -> set[str]:
    """Full names of a module's imports, also inside functions; `from a import b` is a.b if that is a module."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(MODULES) or {node.module}
    return found


def inside(module: str) -> set[str]:
    """The package's own modules that a module imports."""
    return imports(module) & set(MODULES)


def outside(module: str) -> set[str]:
    """Top-level names of the libraries that a module imports."""
    return {name.split(".")[0] for name in imports(module)} - {"fvlm"} - set(sys.stdlib_module_names)


def reached_from(modules: set[str]) -> set[str]:
    """These modules and all they import, directly or not; all modules of a package that imports them by name."""
    reached, waiting = set(), set(modules)
    while waiting:
        module = waiting.pop()
        reached.add(module)
        by_name = {"fvlm.data.readers": "fvlm.data.readers.", "fvlm.analysis.catalog": "fvlm.analysis."}.get(module)
        waiting |= {name for name in MODULES if by_name and name.startswith(by_name)} - reached
        waiting |= inside(module) - reached
    return reached


def room(module: str) -> str:
    """The package below `fvlm` that a module lies in, or its own name: `fvlm.data.shards.tar` -> `data`."""
    return module.split(".")[1] if "." in module else module
