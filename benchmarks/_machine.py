"""What every page of results needs: on what it was measured, and tables."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["PACKAGES", "describe_machine", "machine_lines", "table"]

PACKAGES = ("nnunet-imbal", "nnunetv2", "torch", "numba", "numpy")


def describe_machine(device: str = "cpu") -> dict[str, object]:
    """Processor, threads and versions, as a JSON-ready dictionary."""
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in PACKAGES},
    }


def machine_lines(machine: dict[str, object]) -> list[str]:
    """The same as Markdown list items."""
    versions = machine["versions"]
    assert isinstance(versions, dict)
    plain = {key: value for key, value in machine.items() if key != "versions"}
    return [
        *(f"- {key if key.isupper() else key.replace('_', ' ')}: {value}" for key, value in plain.items()),
        "- versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
