"""``nnunet-imbal doctor``: look for what could go wrong on this machine, and say how to cure it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_imbal.discovery import VARIABLE, active_mechanism, discovery_folder
from nnunet_imbal.errors import DataError

__all__ = ["Finding", "examine", "print_findings"]

Status = Literal["ok", "warn", "problem"]
_COLOURS = {"ok": "green", "warn": "yellow", "problem": "red"}
_PACKAGES = ("nnunet_imbal", "monai_ext", "trainers", "numba_kernels")
_WATCHED = ("torch", "nnunetv2", "monai", "numba", "numpy")
_NNUNET_PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_PROBE_SECONDS = 300

# Runs in its own process: a package that fails to import, or takes the interpreter down, must not stop the others.
_PROBE = """
import json, warnings
def attempt(action):
    try:
        return {"value": str(action())}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}
def torchvision():
    import torchvision
    return torchvision.__version__
def monai():
    import monai
    return monai.__version__
def kernels():
    warnings.simplefilter("error", RuntimeWarning)
    import numba_kernels.connected_components
    return "ready"
def gpu():
    import torch
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
def gpu_kernels():
    from nnunet_imbal._cuda_backend import find_obstacle
    return find_obstacle("component_cells") if gpu() else ""
def trainer():
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    import sys
    return sys.modules[recursive_find_trainer_class_by_name("ImbalTrainer").__module__].__file__
steps = (torchvision, monai, gpu, gpu_kernels, trainer, kernels)
print("\\n" + json.dumps({step.__name__: attempt(step) for step in steps}))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        status: ``"ok"``, ``"warn"`` (works, but you may want to know) or ``"problem"`` (something will fail).
        what: What was found.
        cure: What to do about it; empty if nothing is to be done.

    Example:
        >>> Finding("python", "ok", "3.11.7").cure
        ''
    """

    name: str
    status: Status
    what: str
    cure: str = ""


def examine() -> list[Finding]:
    """Examine versions, imports, trainer discovery, GPU, kernels and nnU-Net's folders.

    Works also where nnU-Net, MONAI or torchvision is broken. Writes nothing but numba's cache; takes some seconds,
    because it imports nnU-Net in a second process.

    Returns:
        The findings in the order in which they are best read.
    """
    findings = [_python(), *(_version(name) for name in _WATCHED), _own_version()]
    findings += [_location(name) for name in _PACKAGES]
    probe = _run_probe()
    findings += [_mechanism(), _trainer(probe), _torchvision(probe), _monai(probe), _kernels(probe)]
    findings += [_gpu(probe), *(_nnunet_path(name, os.environ) for name in _NNUNET_PATHS)]
    return findings


def print_findings(findings: list[Finding]) -> int:
    """Print the findings as a table.

    Returns:
        1 if there is a problem, else 0: the exit status of the command.
    """
    table = Table()
    for heading in ("what", "state", "found", "cure"):
        table.add_column(heading, overflow="fold")  # a path cut short helps nobody
    for finding in findings:
        colour = _COLOURS[finding.status]
        table.add_row(finding.name, f"[{colour}]{finding.status}[/]", escape(finding.what), escape(finding.cure))
    Console().print(table)
    return int(any(finding.status == "problem" for finding in findings))


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _own_version() -> Finding:
    try:
        return Finding("nnunet-imbal", "ok", metadata.version("nnunet-imbal"))
    except metadata.PackageNotFoundError:
        return Finding(
            "nnunet-imbal",
            "problem",
            "imported, but not installed",
            "install it with pip: pip install <its folder or wheel>",
        )


def _version(name: str) -> Finding:
    wanted = _requirements().get(name)
    cure = f'pip install "{wanted or name}"'
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "problem", "not installed", cure)
    if wanted is None or wanted.specifier.contains(found, prereleases=True):
        return Finding(name, "ok", found)
    return Finding(name, "problem", f"{found}; supported: {wanted.specifier}", cure)


def _requirements() -> dict[str, Requirement]:
    try:
        lines = metadata.requires("nnunet-imbal") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {each.name: each for each in requirements if each.marker is None}


def _location(name: str) -> Finding:
    """Would ``import name`` give our package, or one of the same name that comes first on the path?"""
    ours = Path(__file__).resolve().parents[1] / name
    spec = PathFinder.find_spec(name)
    if spec is None:
        return Finding(name, "problem", "not found", "install it again with pip install --force-reinstall --no-deps")
    found = (
        Path(spec.origin).resolve().parent if spec.origin else Path(next(iter(spec.submodule_search_locations or [""])))
    )
    if found == ours:
        return Finding(name, "ok", str(found))
    cure = f"rename {spec.origin or found}, or take its parent folder out of PYTHONPATH"
    return Finding(name, "problem", f"hidden by {spec.origin or found}", cure)


def _run_probe() -> dict[str, dict[str, str]]:
    """Import the heavy packages in a second process, as nnU-Net's commands would: not in the current folder."""
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(
            command, cwd=sys.prefix, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        failure = f"no answer within {_PROBE_SECONDS} s"
    except (IndexError, ValueError):
        failure = f"Python ended with status {done.returncode}: {done.stderr.strip()[-300:]}"
    return {name: {"error": failure} for name in ("torchvision", "monai", "gpu", "gpu_kernels", "trainer", "kernels")}


def _mechanism() -> Finding:
    try:
        folder, mechanism = discovery_folder(), active_mechanism()
    except DataError as error:
        return Finding("discovery", "problem", "folder missing", str(error))
    if mechanism != "none":
        return Finding("discovery", "ok", f"{mechanism}: {folder}")
    reason = "switched off by NNUNET_IMBAL_AUTOREGISTER=0" if _is_opted_out() else "the start-up file did not run"
    cure = f'export {VARIABLE}="$(nnunet-imbal trainers-path)", or start commands with: nnunet-imbal run'
    return Finding("discovery", "warn" if _is_opted_out() else "problem", reason, cure)


def _is_opted_out() -> bool:
    return os.environ.get("NNUNET_IMBAL_AUTOREGISTER") == "0"


def _trainer(probe: Mapping[str, Mapping[str, str]]) -> Finding:
    result = probe["trainer"]
    if "value" in result:
        return Finding("ImbalTrainer", "ok", f"nnU-Net finds it in {result['value']}")
    if "torchvision::nms" in result["error"]:
        return Finding("ImbalTrainer", "problem", "nnU-Net's search stops at torchvision", "see torchvision below")
    if _is_opted_out():
        return Finding("ImbalTrainer", "warn", "nnU-Net does not find it", "see discovery above")
    return Finding("ImbalTrainer", "problem", result["error"][:300], "cure the other problems of this table first")


def _torchvision(probe: Mapping[str, Mapping[str, str]]) -> Finding:
    """Without a matching torchvision nnU-Net trains its stock trainer, and fails for every other one."""
    result = probe["torchvision"]
    if "value" in result:
        return Finding("torchvision", "ok", result["value"])
    cure = "install torch and torchvision of one build: pip install --force-reinstall torch torchvision"
    what = result["error"][:200]
    if "torchvision::nms" in what:
        what = "built for another torch (one for CPU, one for CUDA?): operator torchvision::nms does not exist"
    return Finding("torchvision", "problem", what, cure)


def _monai(probe: Mapping[str, Mapping[str, str]]) -> Finding:
    result = probe["monai"]
    if "value" in result:
        return Finding("import monai", "ok", "works")
    cure = f'pip install --force-reinstall --no-deps "{_requirements().get("monai", "monai")}"'
    return Finding("import monai", "problem", result["error"][:200], cure)


def _kernels(probe: Mapping[str, Mapping[str, str]]) -> Finding:
    result = probe["kernels"]
    if "value" in result:
        return Finding("kernels", "ok", "load; their machine code is kept on disk")
    if "NUMBA_CACHE_DIR" in result["error"]:
        cure = "export NUMBA_CACHE_DIR=<a writable folder>"
        return Finding("kernels", "warn", "no writable cache: compiled anew in each process", cure)
    return Finding(
        "kernels", "problem", result["error"][:200], f'pip install "{_requirements().get("numba", "numba")}"'
    )


def _gpu(probe: Mapping[str, Mapping[str, str]]) -> Finding:
    result = probe["gpu"]
    if "error" in result:
        return Finding("GPU", "problem", result["error"][:200], "reinstall torch: see pytorch.org, Get started")
    if not result["value"]:
        return Finding("GPU", "warn", "torch sees none", "training on the CPU works, but is slow")
    trial = probe["gpu_kernels"]
    if not (obstacle := trial.get("error") or trial.get("value")):
        return Finding("GPU", "ok", f"{result['value']}, on which the kernels run")
    cure = 'pip install "nnunet-imbal[cuda12]" (or cuda13), see docs/gpu.md; until then kernels run on the CPU'
    return Finding("GPU", "warn", f"{result['value']}, but the kernels do not run on it: {obstacle[:300]}", cure)


def _nnunet_path(name: str, environment: Mapping[str, str]) -> Finding:
    value = environment.get(name)
    if not value:
        return Finding(name, "warn", "not set", f"export {name}=<folder>: nnU-Net's commands need it")
    folder = Path(value)
    if not folder.is_dir():
        return Finding(name, "problem", f"{folder} is not a folder", f'mkdir -p "{folder}", or correct the variable')
    if not os.access(folder, os.W_OK):
        return Finding(name, "problem", f"{folder} is read-only", "choose a folder you may write to")
    return Finding(name, "ok", str(folder))
