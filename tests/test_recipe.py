"""The recipe: what each finding changes, that nothing else changes, and what is said about it."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nnunet_imbal.cli import app
from nnunet_imbal.config import ImbalConfig, Sampling, Term
from nnunet_imbal.configure import edit
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.fingerprint import (
    FILE_NAME,
    ClassFingerprint,
    Fingerprint,
    Together,
    find_fingerprint,
    fingerprint_dataset,
    load_fingerprint,
)
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.recipe import NO_CHANGE, Recipe, choose_recipe
from nnunet_imbal.registry import build_loss, get_loss

ORGAN = ClassFingerprint(
    labels=[1],
    cases=10,
    prevalence=1.0,
    volume_share=0.1,
    volume_mm3=[9e4, 9e4, 1e5, 1e5, 1e5],
    components=10,
    components_per_case=[1.0] * 5,
    component_mm3=[9e4, 9e4, 1e5, 1e5, 1e5],
    largest_share=0.0,
    tubularity=0.8,
    radius_mm=[10.0] * 5,
    no_centre=0.0,
    touches={},
    partner=None,
    example="a",
)
PIECES = replace(ORGAN, components_per_case=[1, 2, 5, 9, 20], component_mm3=[3, 9, 80, 300, 2856], largest_share=0.4)
SPECKS = {"component_mm3": [1, 2, 80, 300, 2856], "largest_share": 0.95}
LESION = replace(PIECES, labels=[2], volume_share=0.005)
VESSEL = replace(ORGAN, labels=[3], tubularity=8.0, radius_mm=[0.5, 0.8, 1.3, 1.5, 2.0])
RARE = replace(ORGAN, labels=[4], cases=2, prevalence=0.2)
TINY = replace(ORGAN, labels=[5], volume_share=0.0004)
LOST = replace(ORGAN, labels=[6], no_centre=0.41, largest_share=0.4)
TREE, BULK = Together(tubularity=20.0, radius_mm=[0.5, 0.8, 1.3, 1.5, 2.0]), Together(20.0, [0.5, 0.8, 1.3, 9.0, 9.0])
CC_DICE, OFTEN = Term("cc_dice", 0.25), Sampling(forced=0.66, coin=True)
CL_DICE = Term("cldice", kwargs={"alpha": 1.0, "merge": True}, from_epoch=500, ramp_epochs=100)


def fingerprint(classes, **changes):
    found = Fingerprint("Dataset042_X", 10, [], 0.0, [1.0] * 3, [64.0] * 3, classes, TREE, "")
    return replace(found, **changes)


def reasons(recipe, what):
    return [choice.reason for choice in recipe.choices if choice.what == what]


def test_nothing_imbalanced_is_stock_nnunet():
    recipe = choose_recipe(fingerprint({"liver": ORGAN, "spleen": ORGAN}))
    assert recipe.config == ImbalConfig.from_dict({})
    assert [str(choice) for choice in recipe.choices] == [
        "no change: nothing is imbalanced, stock nnU-Net is made for this"
    ]


@pytest.mark.parametrize(
    ("classes", "config", "what", "words"),
    [
        (
            {"liver": ORGAN, "lesion": LESION},
            ImbalConfig(terms=(CC_DICE,), sampling=OFTEN),
            "cc_dice",
            "between: lesion (3 and 2,856 mm³); the largest rules Dice",
        ),
        ({"liver": ORGAN, "vessel": VESSEL}, ImbalConfig(terms=(CL_DICE,)), "cldice", "median radius: vessel (1.3 mm)"),
        (
            {"liver": ORGAN, "cyst": RARE},
            ImbalConfig(sampling=Sampling(instance_share=0.0, repeat_factor=0.5)),
            "sampling",
            "in few of 10 cases: cyst (2)",
        ),
        (
            {"lesion": LESION, "cyst": RARE},
            ImbalConfig(terms=(CC_DICE,), sampling=replace(OFTEN, repeat_factor=0.5)),
            "sampling",
            "drawn by piece, and two thirds of all patches are forced",
        ),
        ({"liver": LOST}, ImbalConfig(sampling=Sampling()), "sampling", "it can never centre on a share: liver (41%)"),
        ({"adrenal": TINY, "liver": ORGAN}, ImbalConfig(), NO_CHANGE, "volume: adrenal (0.04 %)"),
        ({"left kidney": ORGAN, "right kidney": replace(ORGAN, labels=[2])}, ImbalConfig(mirroring="auto"),
         "mirroring", "left kidney and right kidney are mirror images"),
        ({"left kidney": ORGAN}, ImbalConfig(mirroring="auto"), "mirroring", "'left kidney' has no partner"),
        (
            {"liver": replace(PIECES, **SPECKS), "spleen": replace(LOST, **SPECKS)},
            ImbalConfig(),
            NO_CHANGE,
            "nothing is imbalanced",
        ),
    ],
)  # fmt: skip
def test_each_finding(classes, config, what, words):
    recipe = choose_recipe(fingerprint(classes))
    assert recipe.config == config
    assert words in "\n".join(reasons(recipe, what))


def test_what_nobody_annotated_changes_nothing():
    recipe = choose_recipe(fingerprint({"liver": ORGAN}, unlabelled=["b", "c"], ignored_share=0.25))
    assert recipe.config == ImbalConfig()
    (said,) = reasons(recipe, NO_CHANGE)
    assert said.startswith("cases without any label: 2 of 12; not annotated in labelled cases: 0.25 of the voxels")
    assert "ImbalTrainerSemi" in said


@pytest.mark.parametrize(("epochs", "first", "ramp"), [(1000, 500, 100), (250, 125, 25), (5, 2, 0), (1, 0, 0)])
def test_late_terms_know_the_length_of_the_training(epochs, first, ramp):
    (term,) = choose_recipe(fingerprint({"vessel": VESSEL}), epochs=epochs).config.terms
    assert (term.from_epoch, term.ramp_epochs) == (first, ramp)


def test_centre_lines_need_a_third_axis_or_images_without_one():
    classes = {"artery": VESSEL, "vein": VESSEL}
    volume, picture = fingerprint(classes), fingerprint(classes, shape=[1.0, 64.0, 64.0])
    assert choose_recipe(volume, patch_size=(32, 32, 32)).config.terms == (CL_DICE,)
    assert choose_recipe(picture, patch_size=(32, 32)).config.terms == (CL_DICE,)
    slices = choose_recipe(volume, patch_size=(32, 32))
    assert slices.config == ImbalConfig()
    assert "in single slices" in reasons(slices, NO_CHANGE)[0]


def test_lesions_with_long_skeletons_are_no_vessels():
    lesion = replace(LESION, tubularity=5.6, radius_mm=[1.0, 1.0, 1.0, 1.7, 3.0])
    recipe = choose_recipe(fingerprint({"lesion": lesion}))
    assert [term.loss for term in recipe.config.terms] == ["cc_dice"]
    assert "lesion (1 mm); but in pieces" in reasons(recipe, NO_CHANGE)[0]


def test_no_centre_lines_of_classes_that_are_no_tree():
    recipe = choose_recipe(fingerprint({"liver": ORGAN, "vein": VESSEL}, together=BULK))
    assert recipe.config == ImbalConfig()
    assert "vein (1.3 mm); but with the other classes they are no tree" in reasons(recipe, NO_CHANGE)[0]
    alone = choose_recipe(fingerprint({"vein": VESSEL}, together=BULK))
    assert [term.loss for term in alone.config.terms] == ["cldice"]


@pytest.mark.parametrize(
    ("number", "seen"), [(1, "centre lines, from"), (2, "centre lines of all of them as one tree")]
)
def test_centre_lines_of_several_classes_are_seen_together(number, seen):
    recipe = choose_recipe(fingerprint({f"vessel {each}": VESSEL for each in range(number)}))
    assert seen in reasons(recipe, "cldice")[0]
    assert recipe.config.terms[0].kwargs["merge"] == (number > 1)


def test_many_classes_are_counted():
    (said,) = reasons(choose_recipe(fingerprint({f"vessel {each}": VESSEL for each in range(13)})), "cldice")
    assert "vessel 0 (1.3 mm), vessel 1 (1.3 mm), vessel 2 (1.3 mm) and 10 more; a gap" in said


@pytest.mark.parametrize("ignore", [None, 9])
@pytest.mark.parametrize("regions", [False, True])
def test_every_loss_it_can_choose_knows_regions_and_ignore_labels(regions, ignore):
    config = choose_recipe(fingerprint({"lesion": LESION, "vessel": VESSEL})).config
    assert [term.loss for term in config.terms] == ["cc_dice", "cldice"]
    spec = LabelSpec(regions, ignore)
    for term in config.terms:
        cls = get_loss(term.loss)
        assert cls.supports_regions
        assert cls.supports_ignore
        target = torch.zeros(1, 2 if regions else 1, 8, 8, 8)
        target[..., 2:4, 2:4, :] = 1
        loss = build_loss(term.loss, **spec.activation(), **term.kwargs)
        assert torch.isfinite(loss(torch.zeros(1, 2, 8, 8, 8), target))


def test_a_recipe_is_a_valid_entry_of_plans():
    recipe = choose_recipe(fingerprint({"lesion": LESION, "vessel": VESSEL, "cyst": RARE}))
    assert isinstance(recipe, Recipe)
    entry = {**json.loads(json.dumps(recipe.config.to_dict())), "recipe": [{"what": "x", "reason": "y"}]}
    assert ImbalConfig.from_dict(entry) == recipe.config


class TestEdit:
    config = ImbalConfig(terms=(Term("cc_dice"), CL_DICE), sampling=Sampling(), mirroring="auto")

    def test_parts_are_replaced_added_and_left_out(self):
        terms = [Term("cc_dice", 0.5), Term("clce")]
        edited = edit(self.config, terms=terms, without=["cldice", "mirroring"])
        assert edited == ImbalConfig(terms=(Term("cc_dice", 0.5), Term("clce")), sampling=Sampling())
        assert edit(self.config, without=["sampling"]).sampling is None
        assert edit(self.config) == self.config

    @pytest.mark.parametrize("name", ["cc_dise", "agtal"])
    def test_what_is_not_there_cannot_be_left_out(self, name):
        with pytest.raises(ConfigError, match=f"cannot leave out: unknown part of the recipe '{name}'"):
            edit(self.config, without=[name])


LABELS = {"background": 0, "organ": 1, "lesion": 2}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Raw and planned dataset: an organ and lesions of very different size; returns the folder of the plans."""
    raw, planned = (tmp_path / part / "Dataset042_Lesions" for part in ("raw", "preprocessed"))
    for folder in (raw / "imagesTr", raw / "labelsTr", planned / "gt_segmentations"):
        folder.mkdir(parents=True)
    description = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 2, "file_ending": ".nii.gz"}
    for folder in (raw, planned):
        (folder / "dataset.json").write_text(json.dumps(description))
    array = np.zeros((16, 24, 24), np.uint8)
    array[2:14, 2:10, 2:22] = 1
    for number, size in enumerate((1, 2, 3, 4)):
        array[2 : 2 + size, 14 : 14 + size, 1 + 6 * number : 1 + 6 * number + size] = 2
    image = nibabel.Nifti1Image(array, np.eye(4))
    for case in ("a", "b"):
        nibabel.save(image, raw / "imagesTr" / f"{case}_0000.nii.gz")
        for folder in (raw / "labelsTr", planned / "gt_segmentations"):
            nibabel.save(image, folder / f"{case}.nii.gz")
    configurations = {"3d_fullres": {"patch_size": [16, 24, 24]}, "3d_small": {"inherits_from": "3d_fullres"}}
    (planned / "nnUNetPlans.json").write_text(json.dumps({"configurations": configurations}))
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(planned.parent))
    return planned


class TestFindFingerprint:
    def test_raw_dataset_then_copies_then_what_was_kept(self, dataset, monkeypatch):
        found = find_fingerprint(dataset)
        assert found == fingerprint_dataset(dataset.parents[1] / "raw" / dataset.name)
        assert load_fingerprint(dataset / FILE_NAME) == found
        monkeypatch.setenv("nnUNet_raw", "/nowhere")
        (dataset / FILE_NAME).unlink()
        assert find_fingerprint(dataset) == found
        monkeypatch.delenv("nnUNet_raw")
        for path in (dataset / "gt_segmentations").iterdir():
            path.unlink()
        assert find_fingerprint(dataset) == found

    def test_a_folder_that_cannot_be_written(self, dataset, monkeypatch):
        def full(path, data):
            raise DataError(f"cannot write {path}: No space left on device")

        monkeypatch.setattr("nnunet_imbal.fingerprint.dataset.write_atomically", full)
        said = []
        found = find_fingerprint(dataset, say=said.append)
        assert found.cases > 0
        assert "could not be kept for the next time: cannot write" in said[0]

    def test_no_label_map_at_all(self, dataset, monkeypatch):
        monkeypatch.delenv("nnUNet_raw")
        for path in (dataset / "gt_segmentations").iterdir():
            path.unlink()
        with pytest.raises(DataError, match=r"no label map in nnUNet_raw \(not set\), and none in .*gt_segmentations"):
            find_fingerprint(dataset)


class TestCommands:
    def run(self, *words):
        done = CliRunner().invoke(app, [*words], env={"COLUMNS": "200"})
        return done.exit_code, done.output

    def entry(self, dataset, name):
        return json.loads((dataset / "nnUNetPlans.json").read_text())["configurations"][name]["imbal"]

    def test_configure_writes_the_recipe(self, dataset):
        code, said = self.run("configure", "42", "--name", "3d_recipe", "--recipe", "--from", "3d_small")
        assert code == 0, said
        assert "pieces of very different size, most of them between: lesion (" in said
        chosen = choose_recipe(find_fingerprint(dataset)).config
        assert chosen.terms == (CC_DICE,)
        assert ImbalConfig.from_dict(self.entry(dataset, "3d_recipe")) == chosen

    def test_configure_edits_the_recipe(self, dataset):
        words = ("--recipe", "--without", "sampling", "--loss", "cc_dice=0.5", "--loss", "clce")
        code, said = self.run("configure", "42", "--name", "3d_mine", *words)
        assert code == 0, said
        expected = ImbalConfig(terms=(Term("cc_dice", 0.5), Term("clce")))
        assert ImbalConfig.from_dict(self.entry(dataset, "3d_mine")) == expected

    def test_configure_refuses(self, dataset):
        assert "--recipe" in self.run("configure", "42", "--name", "new", "--without", "cc_dice", "--sampling")[1]
        before = (dataset / "nnUNetPlans.json").read_text()
        done = CliRunner().invoke(app, ["configure", "42", "--name", "new", "--recipe", "--from", "3d_fullers"])
        assert isinstance(done.exception, ConfigError)
        assert "did you mean '3d_fullres'" in str(done.exception)
        assert (dataset / "nnUNetPlans.json").read_text() == before

    def test_fingerprint_ends_with_the_choices(self, dataset, tmp_path):
        page = tmp_path / "page.html"
        code, said = self.run("fingerprint", "42", "--html", str(page))
        assert code == 0, said
        assert said.index("ImbalTrainer chooses") > said.index("Dataset042_Lesions")
        assert "CC-Dice lets each count the same" in said
        html = page.read_text()
        assert "What ImbalTrainer would choose" in html
        assert "<th>cc_dice</th><td>pieces of very different size" in html
