"""Operating points: the decision itself, the choice, its test on other cases, the file, and what users get wrong."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import label
from typer.testing import CliRunner

from nnunet_imbal.cli import app
from nnunet_imbal.errors import ConfigError, DataError, GeometryError, LabelError
from nnunet_imbal.evaluation import evaluate_folders
from nnunet_imbal.metrics import froc_counts
from nnunet_imbal.operating_point import (
    FILE_NAME,
    Channels,
    ClassPoint,
    Criterion,
    check_model,
    check_target,
    choose_operating_point,
    decide,
    load_operating_point,
    read_channels,
    score_maps,
)
from nnunet_imbal.operating_point.choice import THRESHOLDS, VOLUMES_MM3, fit_class

ONE = Channels({"lesion": (1,)}, (1,))
TWO = Channels({"organ": (1,), "lesion": (2,)}, (1, 2))
REGIONS = Channels({"whole": (1, 2), "core": (2,)}, (1, 2), regions=True)
SHAPE, SPACING = (4, 16, 16), (2.0, 1.0, 1.0)


def _softmax(rng, channels, shape=(3, 8, 8)):
    values = np.exp(rng.normal(0, 2, (channels, *shape)))
    return (values / values.sum(axis=0)).astype(np.float32)


def _binary(lesion):
    return np.stack([1 - lesion, lesion]).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ deciding


def test_the_default_point_is_nnunets_argmax(rng):
    probs = _softmax(rng, 3)
    np.testing.assert_array_equal(decide(probs, TWO, {}, SPACING), probs.argmax(axis=0))
    probs[:] = 1 / 3  # ties, too: the first channel wins
    assert not decide(probs, TWO, {}, SPACING).any()


def test_the_default_point_paints_regions_as_nnunet(rng):
    probs = rng.random((2, 3, 8, 8), np.float32)
    expected = np.zeros((3, 8, 8))
    for channel, value in enumerate(REGIONS.painted):
        expected[probs[channel] > 0.5] = value
    np.testing.assert_array_equal(decide(probs, REGIONS, {}, SPACING), expected)


def test_with_one_class_the_threshold_is_plain():
    lesion = np.linspace(0.01, 0.99, 50, dtype=np.float32).reshape(1, 5, 10)
    for threshold in (0.1, 0.3, 0.77):
        labels = decide(_binary(lesion), ONE, {"lesion": ClassPoint(threshold)}, SPACING)
        np.testing.assert_array_equal(labels == 1, lesion > threshold)


def test_classes_compete_by_weight(rng):
    probs, points = _softmax(rng, 3), {"organ": ClassPoint(0.7), "lesion": ClassPoint(0.2)}
    labels = decide(probs, TWO, points, SPACING)
    for z, y, x in np.ndindex(labels.shape):
        background, organ, lesion = probs[:, z, y, x].tolist()
        assert labels[z, y, x] == np.argmax([background, organ * 0.3 / 0.7, lesion * 0.8 / 0.2])


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8])
def test_score_maps_tell_the_same_as_deciding_with_one_changed_class(rng, threshold):
    probs = _softmax(rng, 3)
    for name, values, scores in zip(TWO.members, TWO.members.values(), score_maps(probs, TWO), strict=True):
        labels = decide(probs, TWO, {name: ClassPoint(threshold)}, SPACING)
        np.testing.assert_array_equal(scores > threshold, labels == values[0])


def test_components_that_are_too_small_become_background():
    lesion = np.zeros((1, 5, 8), np.float32)
    lesion[0, 0, :3] = lesion[0, 3, 4] = lesion[0, 4, 5] = 0.9
    labels = decide(_binary(lesion), ONE, {"lesion": ClassPoint(0.5, 5.0)}, SPACING)  # voxels of 2 mm³
    assert labels.sum() == 3
    assert labels[0, 0, :3].all()


def test_a_small_core_leaves_the_whole_intact():
    probs = np.zeros((2, 1, 4, 4), np.float32)
    probs[0] = 0.9
    probs[1, 0, 0, 0] = 0.9
    assert decide(probs, REGIONS, {}, SPACING)[0, 0, 0] == 2
    assert (decide(probs, REGIONS, {"core": ClassPoint(0.5, 10)}, SPACING) == 1).all()


def test_labels_above_255_fit():
    channels = Channels({"far": (1,)}, (300,), regions=True)
    assert decide(np.ones((1, 1, 2, 2), np.float32), channels, {}, SPACING).max() == 300


def test_what_decide_refuses(rng):
    with pytest.raises(ConfigError, match="no class tumour; expected organ, lesion"):
        decide(_softmax(rng, 3), TWO, {"tumour": ClassPoint()}, SPACING)
    with pytest.raises(DataError, match="4 channels, the dataset needs 3"):
        decide(_softmax(rng, 4), TWO, {}, SPACING)


@pytest.mark.parametrize("numbers", [(0, 0), (1, 0), (math.nan, 0), (0.5, -1), (0.5, math.inf)])
def test_points_out_of_range(numbers):
    with pytest.raises(ConfigError, match="expected a number"):
        ClassPoint(*numbers)


@pytest.mark.parametrize("numbers", [(-1.0,), (math.nan,), (None, -0.1)])
def test_criteria_out_of_range(numbers):
    with pytest.raises(ConfigError, match="expected a number, 0 or more"):
        Criterion(*numbers)


def _dataset_json(folder, labels, **more):
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}, **more}))
    return folder / "dataset.json"


def test_channels_as_nnunet_orders_them(tmp_path):
    assert read_channels(_dataset_json(tmp_path, {"b": 2, "ignore": 3, "a": 1})) == Channels(
        {"a": (1,), "b": (2,)}, (1, 2), ignore=3
    )
    regions = _dataset_json(tmp_path, {"core": 2, "whole": [1, 2]}, regions_class_order=[2, 1])
    assert read_channels(regions) == Channels({"core": (2,), "whole": (1, 2)}, (2, 1), regions=True)
    with pytest.raises(LabelError, match="expects 1, 2, 3"):
        read_channels(_dataset_json(tmp_path, {"a": 1, "b": 3}))
    with pytest.raises(LabelError, match="regions_class_order"):
        read_channels(_dataset_json(tmp_path, {"whole": [1, 2]}))
    with pytest.raises(LabelError, match="2 regions need as many labels"):
        read_channels(_dataset_json(tmp_path, {"whole": [1, 2], "core": 2}, regions_class_order=[1]))


# ------------------------------------------------------------------------------------------------------ choosing


def _case(rng, faint=0.35, speck=0.95):
    """Lesions of 36 mm³, some of them faint, and specks of 2 mm³ that are none."""
    truth, lesion = np.zeros(SHAPE, bool), rng.uniform(0, 0.05, SHAPE)
    corners = [(z, y, x) for z in (0,) for y in (0, 4, 8, 12) for x in (0, 4, 8, 12)]
    for number, corner in enumerate(rng.permutation(corners)[:9]):
        box = tuple(slice(c, c + 3) for c in corner)
        if number < 5:
            truth[box], lesion[box] = True, faint if number < 3 else 0.9
        else:
            lesion[tuple(corner)] = speck
    return truth, lesion


def _counts(cases):
    return [froc_counts(p, t, SPACING, thresholds=THRESHOLDS, volumes_mm3=VOLUMES_MM3) for t, p in cases]


def _naive_scores(cases, point):
    """Loops over cases and components: recall, precision, F1, false positives per case, mean Dice."""
    lesions = detected = components = alarms = 0
    dices = []
    for truth, lesion in cases:
        found = lesion > point.threshold
        pieces, number = label(found, np.ones((3, 3, 3)))
        for piece in range(1, number + 1):
            if (pieces == piece).sum() * math.prod(SPACING) < point.min_volume_mm3:
                found = found & (pieces != piece)
            else:
                components += 1
                alarms += not truth[pieces == piece].any()
        true_pieces, count = label(truth, np.ones((3, 3, 3)))
        lesions, detected = lesions + count, detected + len(set(true_pieces[found & truth].tolist()))
        if found.any() or truth.any():
            dices.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    recall, precision = detected / lesions, (components - alarms) / components if components else 0
    f1 = 2 * recall * precision / (recall + precision) if recall else 0
    return recall, precision, f1, alarms / len(cases), np.mean(dices)


def _numbers(scores):
    return scores.recall, scores.precision, scores.f1, scores.false_positives_per_case, scores.dice


def test_faint_lesions_are_gained_and_specks_lost(rng):
    cases = [_case(rng) for _ in range(6)]
    fit = fit_class(_counts(cases), [0, 0, 1, 1, 2, 2], Criterion())
    assert 0.05 <= fit.point.threshold < 0.35
    assert 2 < fit.point.min_volume_mm3 <= 36
    assert _numbers(fit.stock) == pytest.approx(_naive_scores(cases, ClassPoint()))
    assert _numbers(fit.fitted) == pytest.approx((1, 1, 1, 0, 1))
    assert fit.reason == f"F1 {fit.stock.f1:.3f} -> F1 {fit.tested.f1:.3f} on cases it was not chosen on"


def test_of_equally_good_points_the_one_nearest_to_stock_is_taken(rng):
    fit = fit_class(_counts([_case(rng) for _ in range(4)]), [0, 1, 0, 1], Criterion())
    assert fit.point == ClassPoint(0.3, 3.0)


def test_tested_scores_come_from_points_chosen_without_the_group(rng):
    cases = [_case(rng, faint=faint) for faint in (0.42, 0.42, 0.22, 0.22, 0.33)]
    groups = [0, 0, 1, 1, 2]
    fit = fit_class(_counts(cases), groups, Criterion())
    for group in (0, 1, 2):
        others = [case for case, mine in zip(cases, groups, strict=True) if mine != group]
        points = [ClassPoint(t, v) for t in THRESHOLDS for v in VOLUMES_MM3]
        best = max(_naive_scores(others, p)[2] for p in points if p.threshold in (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5))
        assert _naive_scores(others, fit.held_out[group])[2] == pytest.approx(best)
    single = [_naive_scores([case], fit.held_out[group]) for case, group in zip(cases, groups, strict=True)]
    assert fit.tested.dice == pytest.approx(np.mean([scores[4] for scores in single]))
    assert fit.tested.recall == pytest.approx(np.mean([scores[0] for scores in single]))  # five lesions in each case


def test_a_point_that_does_not_hold_elsewhere_is_not_kept(rng):
    """Each group has specks of its own level, so that what suits the others brings false positives here."""
    cases = [_case(rng, faint=0.9, speck=speck) for speck in (0.55, 0.55, 0.97, 0.97)]
    counts = [replace(c, **{name: getattr(c, name)[:, :1].repeat(14, 1) for name in _ARRAYS}) for c in _counts(cases)]
    for case in counts[2:]:  # the second group: caution costs lesions
        case.detected[THRESHOLDS.index(0.55) :] = 0
        case.components[THRESHOLDS.index(0.55) :] = case.false_positives[THRESHOLDS.index(0.55) :]
    fit = fit_class(counts, [0, 0, 1, 1], Criterion(largest_dice_loss=1))
    assert fit.point == ClassPoint()
    assert fit.reason.startswith("stock: ")
    assert fit.tested.f1 <= fit.stock.f1


_ARRAYS = ("detected", "components", "false_positives", "predicted_voxels", "common_voxels")


def test_nothing_to_gain_stays_stock(rng):
    perfect = [(truth, truth * 0.9) for truth, _ in (_case(rng) for _ in range(4))]
    fit = fit_class(_counts(perfect), [0, 0, 1, 1], Criterion())
    assert (fit.point, fit.reason) == (ClassPoint(), "stock: no point is better")
    healthy = [(np.zeros(SHAPE, bool), p) for _, p in perfect]
    fit = fit_class(_counts(healthy), [0, 0, 1, 1], Criterion())
    assert (fit.point, fit.stock.recall) == (ClassPoint(), None)
    assert fit.reason == "stock: the validation cases show no lesion of this class"


def test_dice_is_not_sold_for_f1():
    """A halo around the large lesion joins it at low thresholds: the small one is found, the outline is lost."""
    truth, lesion = np.zeros(SHAPE, bool), np.zeros(SHAPE)
    lesion[:, :10] = 0.35
    truth[:, :6, :6], lesion[:, :6, :6] = True, 0.9
    truth[0, 14, 14], lesion[0, 14, 14] = True, 0.35
    counts = _counts([(truth, lesion)] * 4)
    assert fit_class(counts, [0, 0, 1, 1], Criterion()).point == ClassPoint()
    assert fit_class(counts, [0, 0, 1, 1], Criterion(largest_dice_loss=1)).point == ClassPoint(0.3)


def test_highest_recall_at_a_price(rng):
    cases = [_case(rng) for _ in range(6)]
    groups = [0, 0, 1, 1, 2, 2]
    fit = fit_class(_counts(cases), groups, Criterion(at_most_false_positives=4))
    assert fit.point == ClassPoint(0.3)  # the four specks of each case are affordable
    assert fit.tested.recall == 1
    assert "recall 0.400 at 4.00 false positives per case -> recall 1.000" in fit.reason
    fit = fit_class(_counts(cases), groups, Criterion(at_most_false_positives=1))
    assert fit.point == ClassPoint(0.3, 3.0)


def test_a_price_that_cannot_be_paid():
    """Lesion and false alarm look alike."""
    truth, lesion = np.zeros(SHAPE, bool), np.zeros(SHAPE)
    lesion[0, :3, :3] = lesion[0, 8:11, 8:11] = 0.9
    truth[0, :3, :3] = True
    fit = fit_class(_counts([(truth, lesion)] * 4), [0, 0, 1, 1], Criterion(at_most_false_positives=0.5))
    assert fit.point == ClassPoint()
    assert fit.reason == "stock: no point has at most 0.5 false positives per case at so little Dice"


# ------------------------------------------------------------------------------------------------- model folders


def _write_map(path, labels, spacing=SPACING):
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


class Model:
    """A results folder with validation predictions, as ``nnUNetv2_train --npz`` leaves it, and its label maps."""

    def __init__(self, root, labels, **dataset):
        self.folder = root / "results" / "Dataset009_X" / "ImbalTrainer__nnUNetPlans__3d_fullres"
        self.truth = root / "preprocessed" / "Dataset009_X" / "gt_segmentations"
        self.folder.mkdir(parents=True)
        (self.folder / "plans.json").write_text(json.dumps({"dataset_name": "Dataset009_X"}))
        self.channels = read_channels(_dataset_json(self.folder, labels, **dataset))

    def add(self, fold, name, truth, probs):
        validation = self.folder / f"fold_{fold}" / "validation"
        _write_map(self.truth / f"{name}.nii.gz", truth)
        _write_map(validation / f"{name}.nii.gz", decide(probs, self.channels, {}, SPACING))
        np.savez_compressed(validation / f"{name}.npz", probabilities=probs)
        (validation.parent / "checkpoint_final.pth").write_bytes(b"weights of fold %d" % fold)
        return validation / f"{name}.npz"

    def choose(self, **options):
        return choose_operating_point(self.folder, references=self.truth, workers=1, **options)


@pytest.fixture
def lesions(tmp_path, rng):
    """Three folds of two cases; deciding at 0.3 from 3 mm³ on is perfect."""
    model = Model(tmp_path, {"lesion": 1})
    for number in range(6):
        truth, lesion = _case(rng)
        model.add(number // 2, f"case{number}", truth, _binary(lesion))
    return model


def test_choice_on_the_files_of_nnunet(lesions):
    chosen = lesions.choose()
    assert chosen.points == {"lesion": ClassPoint(0.3, 3.0)}
    assert (chosen.cases, list(chosen.checkpoints)) == (6, ["0", "1", "2"])
    assert not chosen.is_stock
    assert (chosen.classes["lesion"].held_out.f1, chosen.classes["lesion"].stock.recall) == (1, 0.4)


def test_held_out_scores_are_those_of_evaluate(lesions, tmp_path):
    """All folds choose the same point here, so that the label maps can be written and measured from outside."""
    chosen = lesions.choose(criterion=Criterion(at_most_false_positives=4))
    for fold in range(3):
        for file in (lesions.folder / f"fold_{fold}" / "validation").glob("*.npz"):
            labels = decide(np.load(file)["probabilities"], lesions.channels, chosen.points, SPACING)
            _write_map(tmp_path / "maps" / f"{file.stem}.nii.gz", labels)
    summary = evaluate_folders(tmp_path / "maps", lesions.truth, tmp_path / "e.json")["summary"]["1"]
    ours = chosen.classes["lesion"].held_out
    assert ours.false_positives_per_case == summary["false_positives_per_case"] == 4
    for name in ("recall", "precision", "f1"):
        assert getattr(ours, name) == summary[name]
    assert ours.dice == pytest.approx(summary["dice"]["mean"])


def test_a_single_fold_is_split_into_groups(lesions):
    assert lesions.choose(folds=[0]).points == {"lesion": ClassPoint(0.3, 3.0)}


def test_several_classes(tmp_path, rng):
    model = Model(tmp_path, {"organ": 1, "lesion": 2})
    for number in range(4):
        truth, lesion = _case(rng)
        organ = np.zeros(SHAPE)
        organ[3] = 0.9
        background = 1 - np.maximum(organ, lesion)
        probs = np.stack([background, organ, lesion])
        model.add(number % 2, f"case{number}", np.where(organ > 0, 1, 2 * truth), (probs / probs.sum(0)).astype("f4"))
    chosen = model.choose()
    assert chosen.points == {"organ": ClassPoint(), "lesion": ClassPoint(0.3, 3.0)}
    assert chosen.classes["organ"].reason == "stock: no point is better"


def test_points_that_do_not_hold_together_are_given_up(tmp_path, rng):
    """Two classes want the same voxels: each alone gains by taking them, together one of them loses."""
    model = Model(tmp_path, {"left": 1, "right": 2})
    for number in range(4):
        truth, probs = np.zeros(SHAPE, np.uint8), np.zeros((3, *SHAPE), np.float32)
        probs[0] = 1
        for corner, value, soft in (((0, 0), 1, (0.6, 0.25, 0.15)), ((0, 8), 2, (0.5, 0.2, 0.3))):
            box = (slice(0, 3), slice(corner[0], corner[0] + 3), slice(corner[1], corner[1] + 3))
            truth[box], probs[(slice(None), *box)] = value, np.reshape(soft, (3, 1, 1, 1))
        model.add(number % 2, f"case{number}", truth, probs)
    chosen = model.choose()
    assert chosen.is_stock
    assert {choice.reason for choice in chosen.classes.values()} == {
        "stock: decided for all classes together, the points did not hold for right"
    }
    assert chosen.classes["left"].held_out == chosen.classes["left"].stock


def test_regions(tmp_path, rng):
    model = Model(tmp_path, {"whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    for number in range(4):
        core, lesion = _case(rng)
        model.add(number % 2, f"case{number}", 1 + core, np.stack([np.full(SHAPE, 0.9), lesion]).astype("f4"))
    assert model.choose().points == {"whole": ClassPoint(), "core": ClassPoint(0.3, 3.0)}


def test_voxels_nobody_annotated_do_not_count(tmp_path, rng):
    model = Model(tmp_path, {"lesion": 1, "ignore": 2})
    for number in range(4):
        truth, lesion = _case(rng)
        lesion[3, :, :] = 0.99
        model.add(number % 2, f"case{number}", np.where(lesion == 0.99, 2, truth), _binary(lesion))
    assert model.choose().classes["lesion"].held_out.f1 == 1


# ---------------------------------------------------------------------------------------------- file and command


def test_the_file_comes_back_as_it_was(lesions, tmp_path):
    chosen = lesions.choose()
    chosen.save(tmp_path / "point.json")
    assert load_operating_point(tmp_path / "point.json") == chosen
    content = json.loads((tmp_path / "point.json").read_text())
    assert content["format"] == 1
    assert content["classes"]["lesion"]["point"] == {"threshold": 0.3, "min_volume_mm3": 3.0}
    assert len(content["origin"]) == len(content["checkpoints"]["0"]) == 64


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda text: text.replace('"format": 1', '"format": 99'),
        lambda text: text.replace('"threshold": 0.3', '"threshold": 3'),
        lambda text: text.replace('"threshold"', '"treshold"'),
        lambda text: "[]",
    ],
)
def test_a_damaged_file_is_refused(lesions, tmp_path, damage):
    lesions.choose().save(tmp_path / "point.json")
    text = (tmp_path / "point.json").read_text()
    assert damage(text) != text
    (tmp_path / "point.json").write_text(damage(text))
    with pytest.raises(DataError, match="is no operating point"):
        load_operating_point(tmp_path / "point.json")


def test_a_point_belongs_to_one_training(lesions):
    chosen = lesions.choose()
    check_model(chosen, lesions.folder, [0, 1, 2, 3, "all"])
    (lesions.folder / "fold_1" / "checkpoint_final.pth").write_bytes(b"other weights")
    check_model(chosen, lesions.folder, [0, 2])
    with pytest.raises(DataError, match=r"fold 1 .* was trained again"):
        check_model(chosen, lesions.folder, [0, 1])
    _dataset_json(lesions.folder, {"tumour": 1})
    with pytest.raises(DataError, match="is for the classes lesion"):
        check_model(chosen, lesions.folder, [0])


def test_command(lesions, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(lesions.truth.parents[1]))
    done = CliRunner().invoke(app, ["operating-point", str(lesions.folder), "--folds", "0", "2"])
    assert done.exit_code == 0, done.output
    assert "4 validation cases. Wanted: highest lesion F1" in done.output
    assert "held out" in done.output
    kept = load_operating_point(lesions.folder / FILE_NAME)
    assert (kept.cases, list(kept.checkpoints)) == (4, ["0", "2"])


def test_no_other_file_is_overwritten(lesions, tmp_path):
    lesions.choose(folds=[0]).save(tmp_path / "old.json")
    check_target(tmp_path / "old.json")
    check_target(tmp_path / "new.json")
    (tmp_path / "notes.json").write_text("{}")
    words = ["operating-point", str(lesions.folder), "--labels", str(lesions.truth)]
    for target, message in ((tmp_path / "notes.json", "left as it is"), (tmp_path / "a" / "b.json", "is no folder")):
        done = CliRunner().invoke(app, [*words, "--out", str(target)])
        assert message in str(done.exception)
    assert (tmp_path / "notes.json").read_text() == "{}"


def test_command_with_a_price_and_another_place(lesions, tmp_path):
    words = ["operating-point", str(lesions.folder), "--labels", str(lesions.truth), "--out", str(tmp_path / "p.json")]
    done = CliRunner().invoke(app, [*words, "--at-most-false-positives", "4"])
    assert done.exit_code == 0, done.output
    assert load_operating_point(tmp_path / "p.json").criterion.at_most_false_positives == 4
    assert not (lesions.folder / FILE_NAME).exists()
    assert CliRunner().invoke(app, [*words, "surplus"]).exit_code == 2


# ----------------------------------------------------------------------------------------------- what can go wrong


def test_missing_probabilities_name_the_command(lesions):
    (lesions.folder / "fold_1" / "validation" / "case2.npz").unlink()
    command = "nnUNetv2_train Dataset009_X 3d_fullres 1 -tr ImbalTrainer -p nnUNetPlans --val --npz"
    with pytest.raises(DataError, match=rf"1 of 2 cases \(case2.npz\).*{command}"):
        lesions.choose()
    assert lesions.choose(folds=[0, 2]).cases == 4


def test_missing_folders(lesions, tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(ConfigError, match="export nnUNet_preprocessed"):
        choose_operating_point(lesions.folder)
    with pytest.raises(DataError, match="not a results folder"):
        choose_operating_point(tmp_path)
    with pytest.raises(DataError, match="fold_7"):
        lesions.choose(folds=[7])
    (lesions.truth / "case5.nii.gz").unlink()
    with pytest.raises(DataError, match="holds case5, of which there is no label map"):
        lesions.choose()


def test_fold_all_is_no_validation(tmp_path, rng):
    model = Model(tmp_path, {"lesion": 1})
    truth, lesion = _case(rng)
    model.add(0, "case0", truth, _binary(lesion))
    (model.folder / "fold_0").rename(model.folder / "fold_all")
    with pytest.raises(DataError, match="train at least one fold"):
        model.choose()


def test_one_case_is_too_few(tmp_path, rng):
    model = Model(tmp_path, {"lesion": 1})
    truth, lesion = _case(rng)
    model.add(0, "case0", truth, _binary(lesion))
    with pytest.raises(DataError, match="1 validation case"):
        model.choose()
    model.add(1, "case0", truth, _binary(lesion))
    with pytest.raises(ConfigError, match=r"case0 was validated in several of the folds \[0, 1\]"):
        model.choose()


def test_probabilities_of_another_run(lesions, rng):
    lesions.add(1, "case3", *_swap(_case(rng)))
    np.savez_compressed(lesions.folder / "fold_1" / "validation" / "case3.npz", probabilities=_binary(_case(rng)[1]))
    with pytest.raises(DataError, match="of different runs"):
        lesions.choose()


def _swap(case):
    truth, lesion = case
    return truth, _binary(lesion)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"PK no zip", DataError, "cannot be read"),
        ({"softmax": np.zeros(3)}, DataError, r"cannot be read .*KeyError"),
        ({"probabilities": np.array([{}], object)}, DataError, r"cannot be read .*ValueError"),
        ({"probabilities": np.zeros((3, *SHAPE), "f4")}, DataError, r"expected floats \(2, Z, Y, X\)"),
        ({"probabilities": np.full((2, *SHAPE), 7, "f4")}, DataError, r"expected probabilities 0\.\.1"),
        ({"probabilities": np.zeros((2, 9, 16, 16), "f4")}, GeometryError, "has the shape"),
    ],
)
def test_broken_probabilities(lesions, content, error, message):
    file = lesions.folder / "fold_0" / "validation" / "case1.npz"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.savez_compressed(file, **content)
    with pytest.raises(error, match=message):
        lesions.choose()
