"""Rules all kernels obey: how they compile, where they cache, and that forks, threads and plain Python work."""

import ast
import json
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import numba_kernels
from numba_kernels import _jit

PACKAGE = Path(numba_kernels.__file__).parent
ROOT = Path(__file__).parents[2]
SOURCES = sorted(PACKAGE.glob("*.py"))


def run(arguments, **options):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_kernels_are_serial_and_flags_are_explicit(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words |= {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    assert "prange" not in words
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        flags = {keyword.arg: keyword.value for keyword in call.keywords}
        assert "parallel" not in flags
        if isinstance(call.func, ast.Name) and call.func.id == "njit":
            assert flags.keys() == {"nogil", "cache", "fastmath", "boundscheck", "forceinline"}
    if path.name != "_jit.py":
        assert not words & {"njit", "jit"}, "use the kernel decorator"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_numpy_and_numba_are_imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    tops = {name.split(".")[0] for name in names}
    assert tops <= {"numpy", "numba", "llvmlite", "numba_kernels"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_kernels_have_few_parameters(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert len(node.args.args) <= 8, node.name


IMPORT = """
import sys, time
def seconds(name):
    start = time.process_time()
    __import__(name)
    return time.process_time() - start
print(seconds("numba"), seconds("numba_kernels"))
from numba.core.dispatcher import Dispatcher
kernels = [each for name, module in sys.modules.items() if name.startswith("numba_kernels")
           for each in vars(module).values() if isinstance(each, Dispatcher)]
assert len(kernels) > 20 and not any(kernel.overloads for kernel in kernels)
"""


def test_import_is_quick():
    """Nothing is compiled at import, and beside Numba's own import ours does not count."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0"}  # also while these tests run in plain Python
    rounds = [[float(word) for word in run(["-c", IMPORT], env=environment).split()] for _ in range(3)]
    numba_alone, ours = (min(seconds) for seconds in zip(*rounds, strict=True))
    assert ours < 0.5 * numba_alone


def test_warmup_runs():
    numba_kernels.warmup()


def test_public_names_exist_and_are_sorted():
    assert numba_kernels.__all__ == sorted(numba_kernels.__all__)
    assert all(callable(getattr(numba_kernels, name)) for name in numba_kernels.__all__)


def test_without_a_place_to_cache_kernels_still_compile(monkeypatch):
    def njit(*, cache, **flags):
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available")
        return lambda function: function

    monkeypatch.setattr(_jit, "njit", njit)
    _jit._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernels = [_jit.kernel(lambda x: 2 * x) for _ in range(3)]
    _jit._warn_once.cache_clear()
    assert [kernel(4) for kernel in kernels] == [8, 8, 8]
    assert len(caught) == 1
    assert "NUMBA_CACHE_DIR" in str(caught[0].message)


READ_ONLY = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy, numba_kernels
    count = numba_kernels.connected_components(numpy.ones((2, 2), bool))[1]
print(json.dumps([numba_kernels.__file__, count, [str(warning.message) for warning in caught]]))
"""


@pytest.mark.slow
def test_read_only_install_without_home(tmp_path):
    """Files stand where the cache folders would be made: that stops even an administrator from writing there."""
    shutil.copytree(PACKAGE, tmp_path / "numba_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "numba_kernels" / "__pycache__").touch()
    nowhere = tmp_path / "file"
    nowhere.touch()
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    env |= {key: str(nowhere / "home") for key in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE")}
    out = run(["-B", "-c", READ_ONLY], cwd=tmp_path, env=env)
    file, count, messages = json.loads(out.splitlines()[-1])
    assert Path(file).is_relative_to(tmp_path)
    assert count == 1
    assert len(messages) == 1
    assert "NUMBA_CACHE_DIR" in messages[0]


CHILDREN = """
import multiprocessing, sys
import numba
import torch
import numba_kernels
from nnunet_imbal.ops import cell_overlap, component_cells

def work(queue=None):
    torch.manual_seed(0)
    mask = torch.rand(2, 2, 9, 9, 9) < 0.02
    cells = component_cells(mask, [1.0, 1.0, 2.0], 26)
    sums = cell_overlap(torch.rand(mask.shape), mask, cells)
    if queue is not None:
        queue.put(sums.tolist())
    return sums.tolist()

if __name__ == "__main__":
    numba.config.NUMBA_NUM_THREADS = 2
    numba_kernels.warmup()
    expected = work()
    for method in ("fork", "spawn", "forkserver"):
        for daemon in (False, True):
            context = multiprocessing.get_context(method)
            queue = context.Queue()
            child = context.Process(target=work, args=(queue,), daemon=daemon)
            child.start()
            assert queue.get(timeout=120) == expected
            child.join(60)
            assert child.exitcode == 0, (method, daemon, child.exitcode)
    assert work() == expected
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_children_of_every_kind(tmp_path):
    script = tmp_path / "children.py"
    script.write_text(CHILDREN, encoding="utf-8")
    run(["-W", "ignore::DeprecationWarning", str(script)])


def test_three_threads_at_once():
    rng = np.random.default_rng(0)
    masks = [rng.random((24, 24, 24)) < density for density in (0.01, 0.1, 0.3)] * 4

    def work(mask):
        labels, count = numba_kernels.connected_components(mask)
        cells = numba_kernels.nearest_component(labels)
        line = numba_kernels.tube(numba_kernels.skeletonize(mask))
        soft = numba_kernels.soft_skeleton(line.astype(np.float32), 2)
        return numba_kernels.cell_overlap(soft, mask, cells, count)

    expected = [work(mask) for mask in masks]
    with ThreadPoolExecutor(3) as pool:
        for sums, alone in zip(pool.map(work, masks), expected, strict=True):
            np.testing.assert_array_equal(sums, alone)


@pytest.mark.slow
def test_plain_python_gives_the_same_and_every_line_is_tested(tmp_path):
    folder = str(Path(__file__).parent)
    coverage = ["--cov=numba_kernels", "--cov-report=term-missing", "--cov-fail-under=100"]
    env = os.environ | {"NUMBA_DISABLE_JIT": "1", "COVERAGE_FILE": str(tmp_path / "coverage")}
    selection = [folder, "-m", "not slow", "-k", "not dominant_background", "-p", "no:cacheprovider"]
    run(["-m", "pytest", "-q", *selection, *coverage], cwd=ROOT, env=env)
