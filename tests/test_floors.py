"""The house rules of CONTRIBUTING.md: who may import whom, and how long a function may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jola_interp"
# A module imports from its own floor or from floors below it. A new module gets its line here first.
FLOORS = {
    "_version": 0,
    "gates": 0,
    "edits": 1,
    "tasks": 1,
    "models": 1,
    "prompts": 1,
    "_files": 1,
    "_log": 1,
    "backends": 2,
    "history": 2,
    "selection": 2,
    "batching": 2,
    "schedules": 2,
    "budget": 2,
    "training": 3,
    "methods": 3,
    "evaluation": 3,
    "runs": 3,
    "config": 3,
    "sketch": 3,
    "callbacks": 3,
    "checkpoint": 3,
    "objective": 3,
    "memory": 3,
    "optimisation": 3,
    "convergence": 3,
    "activations": 3,
    "analysis": 4,
    "evidence": 4,
    "export": 4,
    "plots": 5,
    "cli": 6,
    "explore": 6,
    "report": 6,
    "study": 6,
    "hub": 6,
    "hf_trainer": 6,
}
ABOVE_ALL = {"jola_interp", "jola_interp.__main__"}
LONGEST, MOST = 80, 45  # lines of a function: of any, and of nine tenths of them
IMPORTERS = {"import_module", "__import__"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def from_import(node: ast.ImportFrom, module: str) -> Iterator[str]:
    """The targets of `from x import y`: x.y where that is a module, else x; relative ones are resolved."""
    base = node.module or ""
    if node.level:
        here = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
        base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [base])])
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in MODULES else base


def by_name(node: ast.Call) -> Iterator[str]:
    """The target of import_module("x") and __import__("x")."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    if called in IMPORTERS and isinstance(first, ast.Constant) and isinstance(first.value, str):
        yield first.value


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports: at its top, in functions, for types only, and by name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= set(from_import(node, module))
        elif isinstance(node, ast.Call):
            found |= set(by_name(node))
    return {name for name in found if name.split(".")[0] == "jola_interp"} - {module}


def floor(module: str) -> int | None:
    return FLOORS.get(module.split(".")[1]) if "." in module else None


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of imports, from a module back to itself; empty when there is none."""
    done: set[str] = set()
    for start in graph:
        path, stack = [start], [iter(sorted(graph[start]))]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
                done.add(path.pop())
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                stack.append(iter(sorted(graph.get(following, ()))))
    return []


def functions() -> list[tuple[int, str]]:
    """Every function of the package: lines from `def` to its end, and where it is."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (
            (node.end_lineno or node.lineno) - node.lineno + 1,
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}",
        )
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
    ]


def test_every_module_has_a_floor() -> None:
    homeless = [module for module in MODULES if module not in ABOVE_ALL and floor(module) is None]
    assert not homeless, f"no floor for {homeless}: give it a line in FLOORS"


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ABOVE_ALL])
def test_module_imports_from_its_own_floor_or_below(module: str) -> None:
    own = floor(module)
    if own is None:
        pytest.fail(f"{module} has no floor")
    for target in sorted(imports(module)):
        assert target not in ABOVE_ALL, f"{module} imports {target} itself: import the module that holds the name"
        above = floor(target)
        assert above is not None, f"{module} imports {target}, which has no floor"
        assert above <= own, f"{module} (floor {own}) imports {target} (floor {above})"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: imports(module) for module in MODULES if module not in ABOVE_ALL}
    assert not (found := cycle(graph)), " -> ".join(found)


def test_circles_are_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_function_is_long() -> None:
    long = [f"{where} ({lines} lines)" for lines, where in functions() if lines > LONGEST]
    assert not long, f"over {LONGEST} lines: {long}"


def test_nine_tenths_of_the_functions_are_short() -> None:
    sizes = sorted(functions(), reverse=True)
    over = [f"{where} ({lines} lines)" for lines, where in sizes if lines >= MOST]
    assert len(over) <= len(sizes) / 10, f"{len(over)} of {len(sizes)} functions have {MOST} lines or more: {over[:10]}"
