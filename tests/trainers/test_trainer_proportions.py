"""The label proportion in nnU-Net: what is measured, and what acts on which patches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_imbal.config import ImbalConfig, Semi
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.labels import LabelSpec
from trainers._adapter import describe
from trainers._proportions import Proportion, measure_proportions

LABELS = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2])

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


class Volumes:
    """A dataset in memory with nnU-Net's interface; forcing a patch to foreground would fail."""

    def __init__(self, *maps):
        self.maps = {f"case{number}": labels for number, labels in enumerate(maps)}
        self.identifiers = list(self.maps)

    def load_case(self, case):
        labels = self.maps[case][None]
        return np.zeros(labels.shape, np.float32), labels, None, {"class_locations": None}


@pytest.fixture
def labels():
    """An eighth of it class 1, a sixteenth class 2, and nnU-Net's -1 outside the body."""
    volume = np.zeros((8, 8, 8), np.int16)
    volume[:, :, 0] = 1
    volume[:, :4, 1] = 2
    volume[:, :, 7] = -1
    return volume


def measure(cases, manager=LABELS, size=8, patches=5):
    return measure_proportions(cases, SimpleNamespace(patch_size=(size,) * 3), manager, patches)


def test_shares_of_whole_volumes(labels):
    bank = measure(Volumes(labels))
    np.testing.assert_allclose(bank, [[13 / 16, 1 / 8, 1 / 16]] * 5)


def test_regions_overlap(labels):
    np.testing.assert_allclose(measure(Volumes(labels), REGIONS), [[3 / 16, 1 / 16]] * 5)


def test_patches_lie_anywhere(labels):
    np.random.seed(0)  # noqa: NPY002  # nnU-Net's own numbers
    shares = measure(Volumes(labels), size=2, patches=300)[:, 1]
    assert set(np.unique(shares)) == {0, 0.5}
    assert (shares > 0).double().mean().item() == pytest.approx(1 / 7, abs=0.06)


def test_patches_with_ignored_voxels_do_not_count(labels):
    free = labels.copy()
    free[0, 0, 0] = 3
    assert len(measure(Volumes(labels, free), patches=4)) == 4
    with pytest.raises(DataError, match="no training patch is labelled completely"):
        measure(Volumes(free), patches=2)


@pytest.mark.parametrize("spec", [LabelSpec(ignore_label=3), LabelSpec(has_regions=True, ignore_label=3)])
def test_acts_on_wholly_unlabelled_patches_only(spec):
    proportion = Proportion(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), spec, torch.device("cpu"))
    output = [torch.zeros(3, 2, 4, 4, 4, requires_grad=True), torch.zeros(3, 2, 2, 2, 2, requires_grad=True)]
    target = torch.zeros(3, 3 if spec.has_regions else 1, 4, 4, 4)
    target[0, -1] = 1 if spec.has_regions else 3
    target[1, -1, 0] = 1 if spec.has_regions else 3
    proportion.loss(output, [target, target[..., ::2, ::2, ::2]]).backward()
    assert output[0].grad[0].any()
    assert not output[0].grad[1:].any()
    assert output[1].grad is None


def test_restored_from_a_checkpoint():
    spec, device = LabelSpec(ignore_label=3), torch.device("cpu")
    bank = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = Proportion(bank, spec, device)
    logits, target = torch.randn(2, 2, 4, 4, 4), torch.full((2, 1, 4, 4, 4), 3)
    first.loss(logits, target)
    second = Proportion.restore(first.state_dict(), spec, device)
    assert torch.equal(first.loss(logits, target), second.loss(logits, target))


def test_configuration():
    config = ImbalConfig.from_dict({"terms": [], "semi": {"proportion": 0.1}})
    assert describe(config).endswith("0.5 x pseudo-labels + 0.1 x label proportion")
    assert Semi().proportion == 0
    with pytest.raises(ConfigError, match="proportion"):
        Semi.from_dict({"proportion": -1})


def test_upstream_is_what_the_measurement_was_written_for():
    words = nnUNetDataLoader.__init__.__code__.co_varnames
    assert words[1:7] == ("data", "batch_size", "patch_size", "final_patch_size", "label_manager",
                          "oversample_foreground_percent")  # fmt: skip
