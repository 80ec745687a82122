"""Plans are checked before training; every message names what is wrong and the nearest right word."""

import json

import pytest

from nnunet_imbal import build_loss, list_losses
from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses import CCDiceLoss
from nnunet_imbal.registry import register_loss


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"terms": [{"loss": "cc_dise"}]}, "did you mean 'cc_dice'"),
        ({"terms": [{"los": "cc_dice"}]}, "did you mean 'loss'"),
        ({"terms": [{"weight": 1.0}]}, 'needs the key "loss"'),
        ({"terms": [{"loss": "cc_dice", "weight": "1"}]}, "weight must be of type int or float, got '1'"),
        ({"terms": [{"loss": "cc_dice", "weight": -1}]}, "at least 0"),
        ({"terms": [{"loss": "cc_dice", "weight": float("nan")}]}, "finite"),
        ({"terms": [{"loss": "cc_dice", "weight": True}]}, "got True"),
        ({"terms": [{"loss": "os.system"}]}, "unknown loss"),
        ({"terms": [{"loss": 3}]}, "loss must be of type str"),
        ({"terms": {"loss": "cc_dice"}}, "terms must be of type list"),
        ({"terms": ["cc_dice"]}, "must be an object"),
        ({"term": []}, "did you mean 'terms'"),
        ({"base": "nnunett"}, "did you mean 'nnunet'"),
        ({"base": "none"}, "at least one term"),
        ("cc_dice", "must be an object"),
    ],
)
def test_R43_wrong_entries(entry, message):
    with pytest.raises(ConfigError, match=message):
        ImbalConfig.from_dict(entry)


def test_round_trip_through_json():
    config = ImbalConfig.from_dict({"terms": [{"loss": "cc_dice", "kwargs": {"connectivity": 6}, "from_epoch": 3}]})
    assert ImbalConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("options", [{"connectivty": 6}, {"connectivity": 5}, {"spacing": "wide"}])
def test_wrong_loss_options(options):
    with pytest.raises(ConfigError, match="cc_dice: "):
        build_loss("cc_dice", **options)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already taken"):
        register_loss("cc_dice", paper="", summary="")(CCDiceLoss)
    assert list_losses() == sorted(list_losses())
