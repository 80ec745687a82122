"""The demo: refuses what is not its own, resumes, says why a step failed, and ends with a good report."""

import json
import os
import sys
from pathlib import Path

import pytest

from nnunet_imbal import demo
from nnunet_imbal.demo import run_demo
from nnunet_imbal.errors import ConfigError, DataError

SMOKE_TRAINER = Path(__file__).parent / "trainers" / "ext"


def make_demo(out, device="cpu"):
    (out / "logs").mkdir(parents=True, exist_ok=True)
    return demo._Demo("phantom-lesions", out, "ImbalTrainer_demo", device)


@pytest.fixture
def chain(tmp_path):
    """Three steps that write one file each, and the list of those that ran."""
    ran = []

    def step(name):
        def act():
            ran.append(name)
            (tmp_path / name).write_text(name)

        return demo._Step(name, name.title(), tmp_path / name, act)

    steps = [step(name) for name in ("one", "two", "three")]

    def perform_all():
        ran.clear()
        for number in range(len(steps)):
            demo._perform(steps, number, make_demo(tmp_path))
        return list(ran)

    perform_all.steps = steps
    return perform_all


def test_finished_steps_are_not_repeated(chain):
    assert chain() == ["one", "two", "three"]
    assert chain() == []


def test_what_follows_a_repeated_step_is_repeated(chain):
    chain()
    chain.steps[1].output.unlink()
    assert chain() == ["two", "three"]


def test_an_interrupted_step_is_repeated(chain, monkeypatch):
    good = chain.steps[1]

    def act():
        good.action()
        raise KeyboardInterrupt

    chain.steps[1] = demo._Step(good.name, good.title, good.output, act)
    with pytest.raises(KeyboardInterrupt):
        chain()
    chain.steps[1] = good
    assert good.output.exists()
    assert chain() == ["two", "three"]


def test_a_step_without_its_output_is_an_error(tmp_path):
    idle = demo._Step("idle", "Idle", tmp_path / "nothing", lambda: None)
    with pytest.raises(DataError, match="nothing was not made"):
        demo._perform([idle], 0, make_demo(tmp_path))


def test_a_failing_command_shows_the_end_of_its_log(tmp_path):
    words = ("python", "-c", "for i in range(50): print('line', i)\nraise SystemExit('no space left')")
    with pytest.raises(DataError) as failure:
        demo._run(words, tmp_path / "step.log", {**os.environ, "PYTHONUNBUFFERED": "1"}, "")
    message = str(failure.value)
    assert "status 1" in message
    assert "line 49\nno space left" in message
    assert "line 5\n" not in message
    assert str(tmp_path / "step.log") in message
    assert (tmp_path / "step.log").read_text().startswith("line 0\n")


def test_a_missing_command_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nnUNetv2_dance does not exist"):
        demo._run(("nnUNetv2_dance",), tmp_path / "step.log", {}, "")


@pytest.mark.parametrize("data", ["phantom-lesions", "spine"])
def test_every_command_exists(tmp_path, data):
    steps = demo._Demo(data, tmp_path, "ImbalTrainer_demo", "cpu").steps()
    commands = [step.action[0] for step in steps if isinstance(step.action, tuple)]
    assert len(commands) == 5
    assert [name for name in commands if not (Path(sys.executable).parent / name).exists()] == []


def test_users_own_folders_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/precious")
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    environment = make_demo(tmp_path).environment()
    assert environment["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
    assert environment["nnUNet_extTrainer"].split(os.pathsep) == ["/mine", str(demo.discovery_folder())]
    assert environment["nnUNet_compile"] == "f"
    assert "nnUNet_n_proc_DA" not in make_demo(tmp_path, "cuda").environment()


@pytest.mark.parametrize(
    ("words", "message"),
    [({"data": "phantom-lesion"}, "did you mean 'phantom-lesions'"), ({"device": "gpu"}, "device is 'gpu'")],
)
def test_wrong_words_are_refused_before_anything_is_made(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        run_demo(**{"data": "spine", "out": tmp_path / "out", **words})
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        run_demo("spine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="is a file"):
        run_demo("spine", tmp_path / "thesis.txt")


@pytest.mark.parametrize("note", ['{"data": "spine"}', "not JSON"])
def test_the_folder_of_another_demo_is_refused(tmp_path, note):
    (tmp_path / "demo.json").write_text(note)
    with pytest.raises(ConfigError, match="holds another demo"):
        run_demo("phantom-lesions", tmp_path)
    assert (tmp_path / "demo.json").read_text() == note


@pytest.mark.slow
@pytest.mark.e2e
def test_demo_finds_lesions_it_never_saw(tmp_path, capsys):
    report = run_demo("phantom-lesions", tmp_path / "out")
    assert report.stat().st_size > 10_000
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(result["cases"]) >= 4
    assert result["mean_foreground_dice"] > 0.5
    assert result["summary"]["lesion"]["recall"] > 0.3
    capsys.readouterr()
    run_demo("phantom-lesions", tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count("done before") == len(make_demo(tmp_path / "out").steps())
    assert str(report) in printed


@pytest.mark.slow
@pytest.mark.e2e
def test_demo_runs_on_real_scans(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(SMOKE_TRAINER))
    report = run_demo("spine", tmp_path / "out", trainer="ImbalTrainerSmoke")
    assert "vertebra_corpus" in report.read_text(encoding="utf-8")
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(result["summary"]) == 10
