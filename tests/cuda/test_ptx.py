"""GPU kernels compile for the GPUs in use. That needs no GPU and checks the types, which the simulator does not."""

from functools import cache
from importlib import import_module

import pytest
from numba import config, cuda, types

INT, LONG, FLOAT, DOUBLE, BYTE = types.int32, types.int64, types.float32, types.float64, types.uint8
LINE = slice(None, None, 1)
ROWS, VOLUME, BATCH = (slice(None), LINE), (slice(None),) * 2 + (LINE,), (slice(None),) * 3 + (LINE,)
INTEGERS = (BYTE, INT, LONG, types.boolean)
KEYS = (INT, LONG)
FLOATS = ((FLOAT, BYTE), (FLOAT, FLOAT), (DOUBLE, BYTE), (DOUBLE, DOUBLE))

KERNELS = {
    "connected_components": {
        "_link_runs": [(labels[VOLUME], INT[ROWS]) for labels in INTEGERS],
        "_unite": [(labels[VOLUME], INT[ROWS], LONG, LONG) for labels in INTEGERS],
        "_flatten": [(INT[ROWS], INT[ROWS])],
        "_number": [(INT[ROWS], INT[LINE], INT[ROWS], INT[LINE])],
    },
    "contacts": {"_count": [(labels[VOLUME], LONG, LONG, LONG[VOLUME]) for labels in (BYTE, INT, LONG)]},
    "nearest_component": {
        "_sweep_rows": [(labels[ROWS], keys[ROWS], INT[ROWS], *(LONG,) * 3) for labels in INTEGERS for keys in KEYS],
        "_sweep": [(*(keys[VOLUME], INT[VOLUME]) * 2, INT[VOLUME], INT[VOLUME], LONG, LONG, DOUBLE) for keys in KEYS],
        "_look_up": [
            (keys[ROWS], INT[ROWS], labels[ROWS], INT[ROWS], LONG[ROWS], DOUBLE) for labels in INTEGERS for keys in KEYS
        ],
        "_forget": [(keys[ROWS], INT[ROWS], DOUBLE) for keys in KEYS],
        "_measure": [(keys[ROWS], FLOAT[ROWS], DOUBLE, DOUBLE) for keys in KEYS],
    },
    "distance": {
        "_invert": [(masks[LINE], BYTE[LINE]) for masks in INTEGERS],
        "_subtract": [(FLOAT[LINE], FLOAT[LINE])],
    },
    "local_thickness": {
        "_find_deepest": [(FLOAT[BATCH], FLOAT[VOLUME], FLOAT[LINE])],
        "_find_thickest": [(FLOAT[BATCH], FLOAT[VOLUME], FLOAT[LINE], *(DOUBLE,) * 3, FLOAT[BATCH])],
    },
    "skeleton": {
        "_count_groups": [(labels[BATCH], INT[LINE]) for labels in INTEGERS],
        "_list_border": [(labels[BATCH], labels[BATCH], *(INT[LINE],) * 4) for labels in INTEGERS],
        "_thin": [(labels[BATCH], *(INT[LINE],) * 4, INT[ROWS], LONG[LINE]) for labels in INTEGERS],
        "_fatten": [(labels[BATCH], LONG, types.boolean[BATCH]) for labels in INTEGERS],
    },
    "soft_skeleton": {
        "_erode": [(FLOAT[BATCH],) * 2],
        "_add_ridges": [(*(FLOAT[BATCH],) * 4, LONG[LINE], LONG)],
        "_ridge_back": [(*(FLOAT[BATCH],) * 5, LONG[LINE], LONG, FLOAT[BATCH], *(BYTE[BATCH],) * 2)],
        "_dilate_back": [(FLOAT[BATCH], BYTE[BATCH], FLOAT[BATCH])],
        "_erode_back": [(FLOAT[BATCH], BYTE[BATCH], FLOAT[BATCH])],
    },
    "component_sums": {
        "_add": [(probs[ROWS], target[ROWS], INT[ROWS], DOUBLE[VOLUME]) for probs, target in FLOATS],
        "_gather": [(grad[VOLUME], target[ROWS], INT[ROWS], grad[ROWS]) for grad, target in FLOATS],
    },
}
ATOMIC = ("_unite", "_count", "_add", "_find_deepest", "_count_groups", "_list_border", "_thin")
CASES = [(module, name) for module, names in KERNELS.items() for name in names]
CAPABILITIES = [(7, 5), (9, 0), (10, 0)]

pytestmark = pytest.mark.skipif(config.ENABLE_CUDASIM, reason="the simulator compiles nothing")


def compile_ptx(function, signature, capability):
    return cuda.compile_ptx(function, signature, cc=capability)[0]


@cache
def obstacle(capability):
    """Why nothing at all can be compiled for a GPU: no libnvvm on this machine, or a numba too old to know the GPU."""
    try:
        ptx = compile_ptx(lambda array: None, (INT[LINE],), capability)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if target(capability) in ptx else f"the installed CUDA target of numba does not know {target(capability)}"


def target(capability):
    return f".target sm_{capability[0]}{capability[1]}"


@pytest.mark.parametrize("module", KERNELS)
def test_every_kernel_is_listed(module):
    found = vars(import_module(f"numba_kernels.cuda.{module}"))
    kernels = {name for name, value in found.items() if getattr(value, "targetoptions", {}).get("device") is False}
    assert kernels == set(KERNELS[module])


@pytest.mark.parametrize(("module", "name"), CASES)
def test_kernel_compiles(module, name):
    check(module, name, KERNELS[module][name][0], (8, 0))


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda pair: f"sm_{pair[0]}{pair[1]}")
@pytest.mark.parametrize(("module", "name"), CASES)
def test_kernel_compiles_for_other_gpus(module, name, capability):
    check(module, name, KERNELS[module][name][0], capability)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), CASES)
def test_kernel_compiles_for_other_dtypes(module, name):
    for signature in KERNELS[module][name][1:]:
        check(module, name, signature, (8, 0))


def check(module, name, signature, capability):
    if reason := obstacle(capability):
        pytest.skip(reason)
    kernel = getattr(import_module(f"numba_kernels.cuda.{module}"), name)
    ptx = compile_ptx(kernel.py_func, signature, capability)
    assert target(capability) in ptx
    assert ("atom" in ptx) == (name in ATOMIC)
