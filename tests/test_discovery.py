"""nnU-Net's search variable: ours is added, the user's stays, and commands report their own exit status."""

import os
import sys

import pytest

from nnunet_imbal import discovery
from nnunet_imbal.discovery import active_mechanism, discovery_folder, run_with_trainers
from nnunet_imbal.errors import ConfigError, DataError

VARIABLE = "nnUNet_extTrainer"
WRITE = f"import os, sys; open(sys.argv[1], 'w').write(os.environ['{VARIABLE}'])"


def test_folder_holds_one_module_of_re_exports():
    assert [path.name for path in discovery_folder().glob("*.py")] == ["imbal_trainers.py"]


@pytest.mark.parametrize("mine", ["", "/mine", os.pathsep.join(["/mine", "/other"])])
def test_command_sees_the_folder_last(monkeypatch, tmp_path, mine):
    monkeypatch.setenv(VARIABLE, mine)
    monkeypatch.setenv("NNUNET_IMBAL_AUTOREGISTER", "0")
    assert run_with_trainers([sys.executable, "-c", WRITE, str(tmp_path / "value")]) == 0
    expected = [*filter(None, [mine]), str(discovery_folder())]
    assert (tmp_path / "value").read_text() == os.pathsep.join(expected)
    assert os.environ[VARIABLE] == mine


def test_folder_is_not_listed_twice(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(discovery_folder()))
    run_with_trainers([sys.executable, "-c", WRITE, str(tmp_path / "value")])
    assert (tmp_path / "value").read_text() == str(discovery_folder())


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_status_is_the_commands_own(code, status):
    assert run_with_trainers([sys.executable, "-c", code]) == status


@pytest.mark.parametrize(("args", "message"), [([], "No command came"), (["nnUNetv2_trian"], "nnUNetv2_trian")])
def test_missing_command(args, message):
    with pytest.raises(ConfigError, match=message):
        run_with_trainers(args)


def test_incomplete_installation(monkeypatch, tmp_path):
    monkeypatch.setattr(discovery, "__file__", str(tmp_path / "nnunet_imbal" / "discovery.py"))
    with pytest.raises(DataError, match="incomplete"):
        discovery_folder()


def test_active_mechanism(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert active_mechanism() == "none"
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["/mine", str(discovery_folder())]))
    monkeypatch.delitem(sys.modules, "_nnunet_imbal_start", raising=False)
    assert active_mechanism() == "environment variable"
    monkeypatch.setitem(sys.modules, "_nnunet_imbal_start", object())
    assert active_mechanism() == "start-up file"
