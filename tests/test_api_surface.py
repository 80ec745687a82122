"""The public names are a promise. `python tests/test_api_surface.py` rewrites the list after a wanted change."""

import importlib
import json
import pkgutil
from pathlib import Path

LOCK = Path(__file__).with_name("api_surface.json")
PACKAGES = ("nnunet_imbal", "monai_ext", "trainers", "numba_kernels")


def modules():
    for package in map(importlib.import_module, PACKAGES):
        yield package
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not any(part.startswith("_") for part in found.name.split(".")) and ".cuda" not in found.name:
                yield importlib.import_module(found.name)


def surface():
    return {module.__name__: sorted(module.__all__) for module in modules() if hasattr(module, "__all__")}


def test_public_names_are_the_promised_ones():
    assert surface() == json.loads(LOCK.read_text(encoding="utf-8"))


def test_public_names_exist():
    for name, names in surface().items():
        assert [each for each in names if not hasattr(importlib.import_module(name), each)] == []


def test_every_package_says_whose_it_is():
    assert {importlib.import_module(name).__distribution__ for name in PACKAGES} == {"nnunet-imbal"}


if __name__ == "__main__":
    LOCK.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
