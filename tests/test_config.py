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
        ({"terms": [{"loss": "cc_dice", "ramp_epochs": -1}]}, "ramp_epochs must be at least 0"),
        ({"terms": [{"loss": "cc_dice", "ramp_epochs": 1.5}]}, "ramp_epochs must be of type int"),
        ({"terms": [{"loss": "os.system"}]}, "unknown loss"),
        ({"terms": [{"loss": 3}]}, "loss must be of type str"),
        ({"terms": {"loss": "cc_dice"}}, "terms must be of type list"),
        ({"terms": ["cc_dice"]}, "must be an object"),
        ({"term": []}, "did you mean 'terms'"),
        ({"base": "nnunett"}, "did you mean 'nnunet'"),
        ({"base": "none"}, "at least one term"),
        ("cc_dice", "must be an object"),
        ({"sampling": True}, "sampling must be an object"),
        ({"sampling": {"froced": 0.5}}, "did you mean 'forced'"),
        ({"sampling": {"forced": 1.5}}, "forced must be a finite number from 0 to 1, got 1.5"),
        ({"sampling": {"forced": "all"}}, "forced must be of type int or float, got 'all'"),
        ({"sampling": {"instance_share": None}}, "instance_share must be of type"),
        ({"sampling": {"class_exponent": float("inf")}}, "class_exponent must be a finite number"),
        ({"sampling": {"class_exponent": -1}}, "class_exponent must be a finite number from 0"),
        ({"sampling": {"offset": float("nan")}}, "offset must be a finite number"),
        ({"sampling": {"repeat_factor": 0}}, "repeat_factor must be"),
        ({"sampling": {"coin": 1}}, "coin must be true or false"),
        ({"sampling": {"min_voxels": 0}}, "min_voxels must be at least 1"),
        ({"sampling": {"min_voxels": 2.5}}, "min_voxels must be of type int"),
        ({"sampling": {"seed": -1}}, "seed must be at least 0"),
        ({"mirroring": "of"}, "did you mean 'off'"),
        ({"mirroring": False}, "mirroring must be of type str"),
        ({"semi": True}, "semi must be an object"),
        ({"semi": {"treshold": 0.9}}, "did you mean 'threshold'"),
        ({"semi": {"decay": 1}}, "decay must be a finite number from 0 to 0.999999, got 1"),
        ({"semi": {"consistency": -1}}, "consistency must be a finite number from 0"),
        ({"semi": {"ramp": 1.5}}, "ramp must be a finite number from 0 to 1, got 1.5"),
        ({"semi": {"floor": 0.99}}, "a floor that is not above the threshold"),
        ({"semi": {"predict_with": "techer"}}, "did you mean 'teacher'"),
        ({"scdl": {"wieght": 1}}, "did you mean 'weight'"),
        ({"scdl": {"weight": -1}}, "weight must be a finite number from 0"),
        ({"scdl": {"kwargs": []}}, "kwargs must be of type Mapping"),
    ],
)
def test_R43_wrong_entries(entry, message):
    with pytest.raises(ConfigError, match=message):
        ImbalConfig.from_dict(entry)


@pytest.mark.parametrize("sampling", [None, {}, {"forced": 0.5, "repeat_factor": 0.1, "coin": True, "seed": 3}])
def test_round_trip_through_json(sampling):
    terms = [{"loss": "cc_dice", "kwargs": {"connectivity": 6}, "from_epoch": 3}]
    config = ImbalConfig.from_dict({"terms": terms, "sampling": sampling})
    assert (config.sampling is None) == (sampling is None)
    assert ImbalConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_entries_of_semi_supervised_trainers_through_json():
    entry = {"semi": {"decay": 0.999, "predict_with": "teacher"}, "scdl": {"kwargs": {"form": "released"}}}
    config = ImbalConfig.from_dict(entry)
    assert (config.semi.decay, config.semi.floor, config.scdl.weight) == (0.999, 0.5, 0.1)
    assert ImbalConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("options", [{"connectivty": 6}, {"connectivity": 5}, {"spacing": "wide"}])
def test_wrong_loss_options(options):
    with pytest.raises(ConfigError, match="cc_dice: "):
        build_loss("cc_dice", **options)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already taken"):
        register_loss("cc_dice", paper="", summary="")(CCDiceLoss)
    assert list_losses() == sorted(list_losses())
