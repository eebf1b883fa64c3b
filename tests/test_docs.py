"""The documentation site holds what the package offers; that it builds without a warning, ``make docs`` says."""

from __future__ import annotations

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
