"""Throw-away environments that see the packages of the test environment, but neither this project nor any .pth."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def clean_environment(**changes):
    """Environment variables of a fresh shell: nothing that could help or hinder the discovery."""
    drop = ("nnUNet", "NNUNET_IMBAL", "PYTHON", "COVERAGE", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(drop)} | changes


@dataclass(frozen=True)
class Environment:
    """A virtual environment in a folder of its own."""

    folder: Path

    @property
    def python(self):
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site_packages(self):
        return next(self.folder.glob("[Ll]ib/**/site-packages"))

    def files(self):
        """Files of site-packages and of the scripts folder, byte code apart."""
        places = (self.site_packages, self.python.parent)
        return {path for place in places for path in place.rglob("*") if "__pycache__" not in path.parts}

    def run(self, *args, **environment):
        """Run Python in a folder of its own, as a fresh shell would."""
        workplace = self.folder / "workplace"
        workplace.mkdir(exist_ok=True)
        return subprocess.run(
            [self.python, *args],
            cwd=workplace,
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def pip(self, *args):
        command = [sys.executable, "-m", "pip", "--python", self.python, "--no-input", *args]
        subprocess.run(command, env=clean_environment(), check=True, capture_output=True)

    def install(self, wheel):
        # pip must not see the packages of the test environment, which are made visible only afterwards.
        self.pip("install", "--no-deps", "--no-index", wheel)
        self.borrow_packages()

    def borrow_packages(self):
        """Make the test environment's packages importable; a .pth inside a folder named so is not read."""
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site_packages / "zz_borrowed.pth").write_text("\n".join(sorted(paths)) + "\n")

    def uninstall(self):
        (self.site_packages / "zz_borrowed.pth").unlink()
        self.pip("uninstall", "--yes", "nnunet-imbal")


def _build(folder, hook):
    code = f"import sys, hatchling.build as b; print(b.{hook}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, check=True, capture_output=True, text=True)
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    return _build(tmp_path_factory.mktemp("wheel"), "build_wheel")


@pytest.fixture(scope="session")
def editable_wheel(tmp_path_factory):
    """What ``pip install --editable`` installs: the wheel of PEP 660."""
    return _build(tmp_path_factory.mktemp("editable"), "build_editable")


def _create(folder):
    venv.create(folder, with_pip=False)
    environment = Environment(folder)
    (environment.site_packages / "package_of_the_user.py").touch()
    return environment


@pytest.fixture
def new_environment(tmp_path):
    yield _create(tmp_path / "environment")
    shutil.rmtree(tmp_path / "environment")


@pytest.fixture(scope="session")
def installed(tmp_path_factory, wheel):
    """An environment with the wheel in it; tests must leave it as it is."""
    environment = _create(tmp_path_factory.mktemp("installed") / "environment")
    environment.install(wheel)
    return environment
