"""The doctor names each illness by its cause and gives the cure, whatever is broken."""

import pytest

from nnunet_imbal import doctor
from nnunet_imbal.doctor import Finding, examine, print_findings

HEALTHY = {
    "torchvision": {"value": "0.29.2"},
    "monai": {"value": "1.6.1"},
    "gpu": {"value": ""},
    "gpu_kernels": {"value": ""},
    "trainer": {"value": "/site-packages/trainers/imbal_trainer.py"},
    "kernels": {"value": "ready"},
}
NMS = {"error": "RuntimeError: operator torchvision::nms does not exist"}


@pytest.fixture
def diagnose(monkeypatch):
    """Examine this environment with a made-up answer of the second process."""

    def _diagnose(**changes):
        monkeypatch.setattr(doctor, "_run_probe", lambda: {**HEALTHY, **changes})
        return {finding.name: finding for finding in examine()}

    return _diagnose


def test_healthy_environment_has_no_problem(diagnose, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    findings = diagnose()
    assert [f for f in findings.values() if f.status == "problem"] == []
    assert findings["trainers"].what.endswith("trainers")
    assert findings["nnUNet_raw"].cure.startswith("export nnUNet_raw=")


def test_every_complaint_carries_a_cure(diagnose):
    broken = {name: {"error": "ImportError: broken"} for name in HEALTHY}
    complaints = [finding for finding in diagnose(**broken).values() if finding.status != "ok"]
    assert {"torchvision", "import monai", "GPU", "ImbalTrainer", "kernels"} <= {f.name for f in complaints}
    assert all(finding.cure for finding in complaints)


def test_torchvision_of_another_build_is_recognised(diagnose):
    findings = diagnose(torchvision=NMS, trainer=NMS)
    assert "built for another torch" in findings["torchvision"].what
    assert "torchvision" in findings["ImbalTrainer"].what


def test_unwritable_cache_is_a_warning(diagnose):
    error = {"error": "RuntimeWarning: no writable folder. Set NUMBA_CACHE_DIR to a writable folder."}
    assert diagnose(kernels=error)["kernels"].status == "warn"


def test_gpu_is_judged_by_a_trial_of_the_kernels(diagnose):
    gpu = {"value": "NVIDIA H100"}
    assert diagnose(gpu=gpu)["GPU"].status == "ok"
    for trial in ({"error": "ImportError: no numba-cuda"}, {"value": "CudaSupportError: no numba-cuda"}):
        finding = diagnose(gpu=gpu, gpu_kernels=trial)["GPU"]
        assert finding.status == "warn"
        assert "NVIDIA H100" in finding.what
        assert "no numba-cuda" in finding.what
        assert "cuda12" in finding.cure


def test_foreign_trainers_package_is_named(diagnose, monkeypatch, tmp_path):
    foreign = tmp_path / "trainers" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = diagnose()["trainers"]
    assert finding.status == "problem"
    assert str(foreign) in finding.what
    assert "rename" in finding.cure


def test_missing_and_unsupported_versions(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.9.1")
    finding = doctor._version("torch")
    assert finding.status == "problem"
    assert "!=2.9.*" in finding.what
    assert finding.cure.startswith('pip install "torch')


def test_not_installed_package(monkeypatch):
    def missing(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", missing)
    assert doctor._version("monai").what == "not installed"


@pytest.mark.parametrize(("value", "status"), [("0", "warn"), ("1", "problem")])
def test_lost_discovery(diagnose, monkeypatch, value, status):
    monkeypatch.setenv("nnUNet_extTrainer", "")
    monkeypatch.setenv("NNUNET_IMBAL_AUTOREGISTER", value)
    finding = diagnose()["discovery"]
    assert finding.status == status
    assert "nnunet-imbal trainers-path" in finding.cure


def test_nnunet_folders(tmp_path):
    (tmp_path / "file").touch()
    states = {
        path: doctor._nnunet_path("nnUNet_raw", {"nnUNet_raw": str(path)}).status
        for path in (tmp_path, tmp_path / "file", tmp_path / "none")
    }
    assert list(states.values()) == ["ok", "problem", "problem"]


def test_dying_second_process_is_reported(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "import os, sys; print('half', file=sys.stderr); os._exit(9)")
    assert "status 9: half" in doctor._run_probe()["trainer"]["error"]


def test_table_and_exit_status(capsys):
    findings = [Finding("GPU", "warn", "none", 'pip install "nnunet-imbal[cuda12]"'), Finding("python", "ok", "3")]
    assert print_findings(findings) == 0
    assert "[cuda12]" in capsys.readouterr().out
    assert print_findings([*findings, Finding("torch", "problem", "gone", "install")]) == 1


@pytest.mark.slow
def test_this_environment_is_fit():
    assert [finding for finding in examine() if finding.status == "problem"] == []
