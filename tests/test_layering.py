"""Arrows point one way: kernels <- core <- adapters. A host's release can then break only its own adapter."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "numba_kernels": {"torch", "nnunet_imbal", "monai", "monai_ext", "nnunetv2", "trainers"},
    "nnunet_imbal": {"monai", "monai_ext", "nnunetv2", "trainers"},
    "monai_ext": {"nnunetv2", "trainers"},
    "trainers": {"monai", "monai_ext"},
    "startup": {"nnunet_imbal", "numba_kernels", "monai_ext", "trainers", "torch"},
}
# Running nnU-Net's models is what the bridge is for; it imports nnU-Net when asked to, not when it is imported itself.
LATE = {"monai_ext/nnunet_bridge.py": {"nnunetv2"}}
FILES = [(package, path) for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
        yield from imported(node)


def imported(node):
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module.split(".")[0]


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_imports_point_one_way(package, path):
    late = LATE.get(path.relative_to(ROOT).as_posix(), set())
    assert FORBIDDEN[package] & set(imports(path)) == late


@pytest.mark.parametrize("name", LATE)
def test_hosts_of_a_bridge_are_imported_late(name):
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    first = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not LATE[name] & {found for node in first for found in imported(node)}


def test_kernels_need_numpy_and_numba_only():
    allowed = {"numpy", "numba", "llvmlite", "numba_kernels"} | sys.stdlib_module_names
    for path in (ROOT / "numba_kernels").rglob("*.py"):
        assert set(imports(path)) <= allowed, path
