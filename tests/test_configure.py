"""A new configuration is written whole or not at all, and the former plans are kept."""

import json

import pytest
from typer.testing import CliRunner

from nnunet_imbal.cli import app
from nnunet_imbal.config import ImbalConfig, Sampling
from nnunet_imbal.configure import add_configuration, parse_term
from nnunet_imbal.errors import ConfigError, DataError


@pytest.fixture
def plans(tmp_path):
    folder = tmp_path / "Dataset004_X"
    folder.mkdir()
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {"batch_size": 2}}}))
    return path


def test_command_writes_a_configuration_that_the_trainer_reads(plans, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(plans.parent.parent))
    before = plans.read_text()
    done = CliRunner().invoke(app, ["configure", "4", "--name", "3d_fullres_cc", "--loss", "cc_dice=0.5"])
    assert done.exit_code == 0, done.output
    written = json.loads(plans.read_text())["configurations"]
    assert written["3d_fullres"] == {"batch_size": 2}
    assert written["3d_fullres_cc"]["inherits_from"] == "3d_fullres"
    assert ImbalConfig.from_dict(written["3d_fullres_cc"]["imbal"]).terms[0].weight == 0.5
    assert plans.with_suffix(".json.bak").read_text() == before


def test_command_writes_sampling(plans, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(plans.parent.parent))
    words = ["configure", "4", "--name", "balanced"]
    neither = CliRunner().invoke(app, words)
    assert neither.exit_code == 2
    assert "--sampling" in neither.output
    done = CliRunner().invoke(app, [*words, "--sampling"])
    assert done.exit_code == 0, done.output
    written = json.loads(plans.read_text())["configurations"]["balanced"]["imbal"]
    assert ImbalConfig.from_dict(written) == ImbalConfig(sampling=Sampling())


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("3d_fullers", "new", "did you mean '3d_fullres'"),
        ("3d_fullres", "3d_fullres", "already"),
        ("3d_fullres", "a__b", "single underscores"),
    ],
)
def test_refusals_write_nothing(plans, source, name, message):
    before = plans.read_text()
    with pytest.raises(ConfigError, match=message):
        add_configuration(plans, source=source, name=name, config=ImbalConfig())
    assert plans.read_text() == before
    assert [path.name for path in plans.parent.iterdir()] == [plans.name]


def test_unreadable_plans(plans):
    plans.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        add_configuration(plans, source="3d_fullres", name="new", config=ImbalConfig())
    with pytest.raises(DataError, match="nnUNetv2_plan_experiment"):
        add_configuration(plans.with_name("Other.json"), source="3d_fullres", name="new", config=ImbalConfig())


@pytest.mark.parametrize("words", ["cc_dise", "cc_dice=much", "cc_dice=-1"])
def test_wrong_terms(words):
    with pytest.raises(ConfigError):
        parse_term(words)
