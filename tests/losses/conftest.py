import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def naive_instances():
    """The slow twins in naive_instances.py."""
    spec = importlib.util.spec_from_file_location("losses_naive", Path(__file__).with_name("naive_instances.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
