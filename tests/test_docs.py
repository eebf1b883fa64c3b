"""The documentation site holds what the package offers; that it builds without a warning, ``make docs`` says."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import jola_interp as ji

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "api").glob("*.md")))
DESCRIBED = set(re.findall(r"^\.\. auto\w+:: jola_interp\.([\w.]+)$", REFERENCE, re.MULTILINE))


@pytest.mark.parametrize("name", [name for name in ji.__all__ if name not in ("__version__", "PRESETS")])
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert name in DESCRIBED


def test_every_guide_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")]
    listed = [page for page in pages if re.search(rf"^(.*<)?{re.escape(str(page))}>?$", contents, re.MULTILINE)]
    assert set(pages) - set(listed) == {Path("index")}


CODE = [
    pytest.param(code, id=f"{path.relative_to(ROOT)}-{place}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for place, code in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S))
]


@pytest.mark.parametrize("code", CODE)
def test_code_that_is_shown_parses_and_names_what_there_is(code: str) -> None:
    modules = {"ji": ji}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jola_interp"):
            module = importlib.import_module(str(node.module))
            modules |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(root := dotted(node), list) and root[0] in modules:
            found = modules[root[0]]
            for name in root[1:]:
                found = getattr(found, name)


def dotted(node: ast.expr) -> list[str] | None:
    """ "ji.plots.heads" as its parts; None for anything but names."""
    if isinstance(node, ast.Name):
        return [node.id]
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else None
    return [*inner, node.attr] if inner and isinstance(node, ast.Attribute) else None
