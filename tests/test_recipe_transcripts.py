"""The five recipes of docs/recipe.md are what is chosen today. Run this file to write them anew."""

import json
import re
import tempfile
from io import StringIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from rich.console import Console

from nnunet_imbal.fingerprint import fingerprint_dataset
from nnunet_imbal.phantoms import write_dataset
from nnunet_imbal.recipe import choose_recipe, print_recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"
BEGIN, END = "<!-- transcripts: begin -->", "<!-- transcripts: end -->"
WIDTH = 110
CASES = {"phantom-lesions": 8, "phantom-vessels": 4, "phantom-organs": 6, "spine": 4, "two organs": 2}


def write_balanced(raw):
    """Two large organs in every case."""
    folder = raw / "Dataset904_TwoOrgans"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    labels = {"background": 0, "liver": 1, "spleen": 2}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    x, y, z = np.indices((40, 40, 40))
    for case in range(CASES["two organs"]):
        array = np.uint8((x - 12) ** 2 + (y - 20) ** 2 + (z - 20) ** 2 < (9 + case) ** 2)
        array[(x - 30) ** 2 + (y - 20) ** 2 + (z - 20) ** 2 < (7 + case) ** 2] = 2
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / "labelsTr" / f"case{case}.nii.gz")
    return folder


def transcripts(raw):
    """One block for each dataset."""
    blocks = []
    for number, (name, cases) in enumerate(CASES.items(), start=900):
        if name == "two organs":
            folder, made = write_balanced(raw), f"{name}, {cases} cases"
        else:
            folder = write_dataset(name, raw, dataset_id=number, cases=cases, test_cases=0)
            made = f"`nnunet-imbal dataset {name} nnUNet_raw --id {number} --cases {cases}`"
        console = Console(width=WIDTH, file=StringIO())
        print_recipe(choose_recipe(fingerprint_dataset(folder)), console)
        lines = (line.rstrip() for line in console.file.getvalue().strip().splitlines())
        blocks.append("\n".join([made, "", "```text", f"$ nnunet-imbal fingerprint {number}", "...", *lines, "```"]))
    return "\n\n".join(blocks)


@pytest.mark.slow
def test_the_page_shows_what_is_chosen(tmp_path):
    (shown,) = re.findall(f"{BEGIN}\n(.*)\n{END}", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert shown == transcripts(tmp_path)


def test_five_different_recipes_are_shown():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n\$ .*?\n\.\.\.\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert len(set(blocks)) == len(CASES) == 5


def main():
    """Write what is chosen today into the page."""
    with tempfile.TemporaryDirectory() as folder:
        new = f"{BEGIN}\n{transcripts(Path(folder))}\n{END}"
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: new, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
