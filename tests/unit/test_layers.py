"""The arrows between the packages point one way: what is basic knows nothing of what stands on it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import calotype

ROOT = Path(calotype.__file__).parent

MAY_IMPORT = {
    "core": set(),
    "schedulers": {"core", "acceleration"},  # the kernel of its sums, for tensors on CUDA alone
    "nn": {"core"},
    "adapters": {"core", "nn"},
    "acceleration": {"adapters", "core", "nn"},
    "offloading": {"core"},
    "models": {"adapters", "core", "nn", "offloading", "single_file"},
    "diffusion": {"core", "nn", "image_processor", "video_processor"},
    "families": {"adapters", "core", "nn", "models", "diffusion", "image_processor", "video_processor"},
}
"""Package -> the parts of calotype that it may import beside itself."""


def imports(path: Path) -> set[str]:
    """The parts of calotype that a file imports when it runs; what stands under TYPE_CHECKING does not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found.update(name.split(".")[1] for name in names if name.startswith("calotype."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imports(path) <= MAY_IMPORT[package] | {package}, path


def test_the_method_does_not_name_families_even_for_types() -> None:
    for path in sorted((ROOT / "diffusion").rglob("*.py")):
        assert "calotype.families" not in path.read_text(), path
