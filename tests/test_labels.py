"""`to_one_hot`: every dtype of labels, with and without the background."""

import pytest
import torch

from nnunet_imbal.labels import to_one_hot

DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_classes", "first"), [(2, 0), (3, 1), (200, 1), (300, 0)])
def test_each_class_has_its_channel(dtype, num_classes, first):
    labels = torch.tensor([[[0, 1, 1, 0, 127, 2]]]).to(dtype)
    channels = to_one_hot(labels, num_classes, first)
    assert channels.dtype == torch.bool
    assert channels.shape == (1, num_classes - first, 6)
    for c in range(first, num_classes):
        assert channels[0, c - first].tolist() == [value == c for value in labels[0, 0].tolist()]


def test_values_of_no_class_are_in_no_channel():
    assert to_one_hot(torch.tensor([[[-1, 3, 255]]]), 3).sum() == 0
