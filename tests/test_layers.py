"""The rules of the house that no linter knows: size caps, homes of dependencies, bare packages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "allrounder"
SERVICE = ROOT / "app" / "allrounder_service"
RESEARCH = ROOT / "research"
HOUSES = (LIBRARY, SERVICE, RESEARCH)

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
# "app/x.py" or "app/x.py:function", each with its reason beside it.
OVERSIZE: frozenset[str] = frozenset()

# Where a third-party package may be imported: modules, or packages with all that lies below.
HOMES: dict[str, tuple[str, ...]] = {
    "fastapi": ("allrounder_service.api", "allrounder_service.main"),
    "starlette": ("allrounder_service.api", "allrounder_service.main"),
    "uvicorn": ("allrounder_service.api.transport", "allrounder_service.main"),
    "redis": ("allrounder_service.jobs",),
    "prometheus_client": ("allrounder_service.metrics",),
    "opentelemetry": ("allrounder_service.tracing.otel", "allrounder_service.tracing.spans"),
    "matplotlib": ("allrounder.measure.plots",),
    "transformers": ("allrounder.models", "research.demo_model"),
    "PIL": (
        "allrounder.images",
        "allrounder.models",
        "allrounder.demo",
        "allrounder.bench.noise_images",
        "allrounder_service.api.intake.images",
        "research.demo_model",
    ),
    "httpx2": ("allrounder.bench", "allrounder_service.cli"),
    "httpx": (),
    "torchvision": (),
}

TORCH_FREE = (
    "allrounder",
    "allrounder.budget",
    "allrounder.core",
    "allrounder.cost",
    "allrounder.engine.scheduling.scheduler",
    "allrounder.errors",
    "allrounder.settings",
    "allrounder_service.api",
    "allrounder_service.api.intake.api_request",
    "allrounder_service.cli.main",
    "allrounder_service.jobs",
    "allrounder_service.main",
    "allrounder_service.settings",
    "allrounder_service.tracing",
)

BANNED = {
    "an unfinished note": r"\b(TODO|FIXME|XXX|HACK)\b",
    "a section banner": r"^\s*#\s*[-=#*~]{4,}",
    "an ignore without its code": r"#\s*(type:\s*ignore|noqa)(?!\s*[\[:])",
    "a name that says nothing": r"^\s*class \w+(Manager|Helper|Utils?)\b",
}


def python_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    house = SERVICE.parent if path.is_relative_to(SERVICE) else ROOT
    parts = path.relative_to(house).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lies_in(module: str, home: str) -> bool:
    return module == home or module.startswith(home + ".")


def imported_packages(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all absolute imports, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def oversize(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if (lines := len(text.splitlines())) > MAX_FILE_LINES:
        yield f"{place(path)}: {lines} lines, cap {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
                yield f"{place(path)}:{node.name}: {lines} lines, cap {MAX_FUNCTION_LINES}"


def is_export(node: ast.stmt) -> bool:
    """A docstring, an import, or a constant such as `__all__` or a registry."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant(str())):
            return True
        case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)):
            return name == "__all__" or name.isupper()
        case ast.If(test=ast.Name("TYPE_CHECKING"), body=body, orelse=[]):
            return all(map(is_export, body))
    return False


def beyond_exports(path: Path) -> Iterator[str]:
    """Statements of a package's `__init__`; one with a registry may define its functions too."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    has_registry = any(
        isinstance(n, ast.AnnAssign) and isinstance(n.value, ast.Dict | ast.DictComp) for n in body
    )
    for node in body:
        if not is_export(node) and not (has_registry and isinstance(node, ast.FunctionDef)):
            yield f"{place(path)}:{node.lineno}: {type(node).__name__}"


def test_files_and_functions_stay_under_their_caps() -> None:
    found = [line for path in python_files(*HOUSES) for line in oversize(path)]
    assert [line for line in found if line.split(": ")[0] not in OVERSIZE] == []


def test_every_dependency_is_imported_only_in_its_home() -> None:
    strays = [
        f"{place(path)} imports {package}, at home in {HOMES[package] or 'no file'}"
        for path in python_files(*HOUSES)
        for package in imported_packages(ast.parse(path.read_text(encoding="utf-8")))
        if package in HOMES and not any(lies_in(module_name(path), home) for home in HOMES[package])
    ]
    assert strays == []


def test_every_package_init_only_exports_or_keeps_a_registry() -> None:
    inits = [path for path in python_files(*HOUSES) if path.name == "__init__.py"]
    assert [line for path in inits for line in beyond_exports(path)] == []


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in python_files(*HOUSES)}
    assert [place(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("reason", BANNED)
def test_no_source_holds(reason: str) -> None:
    pattern = re.compile(BANNED[reason])
    found = [
        f"{place(path)}:{number}: {line.strip()}"
        for path in python_files(*HOUSES, ROOT / "tests")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.timeout(60)
def test_torch_stays_unloaded_where_requests_are_admitted_and_priced() -> None:
    script = f"import sys, {', '.join(TORCH_FREE)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_the_changelog_opens_with_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert heading is not None
    assert heading[1] == project["version"]


def test_every_constraint_is_an_exact_public_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert "torch==2.13.0" in pins
