"""The messages in the headings of docs/troubleshooting.md are those that users see."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("nnunet_imbal", "numba_kernels", "trainers", "monai_ext")
TORCH = {"operator torchvision::nms does not exist", "Weights only load failed", "torch.compile", "nan"}


def quoted() -> list[str]:
    """Messages in the headings; an ellipsis parts what is fixed."""
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = {message for heading in headings for message in re.findall(r"`([^`]+)`", heading)}
    return sorted(messages - TORCH)


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")
    for package in ("nnunetv2", "batchgenerators"):
        yield from Path(importlib.util.find_spec(package).submodule_search_locations[0]).rglob("*.py")


@pytest.fixture(scope="module")
def code() -> str:
    """All sources in one string, with literals that go on in the next line joined."""
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", "\n".join(path.read_text(encoding="utf-8") for path in sources()))


@pytest.mark.parametrize("message", quoted())
def test_messages_exist(message, code):
    for fragment in message.split("..."):
        assert fragment.strip() in code


def test_sections_are_named_in_the_table():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == re.findall(r"\| \[(.+)\]\(#", text)
