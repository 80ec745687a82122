"""After ``pip install nnunet-imbal`` nnU-Net finds our trainers; after ``pip uninstall`` nothing is left."""

import json
import os
import shutil
import statistics
import sys
import zipfile

import pytest

pytestmark = pytest.mark.packaging

VARIABLE = "nnUNet_extTrainer"
SHOW = f"import os; print(os.environ.get('{VARIABLE}'))"

LOOK_UP = """
import json, multiprocessing, os, pickle, sys

def home_of(cls):
    return cls.__module__

if __name__ == "__main__":
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
    found = find("ImbalTrainer")
    import trainers
    answer = {
        "same": found is trainers.ImbalTrainer and find("ImbalTrainer") is found,
        "home": found.__module__,
        "pickles": pickle.loads(pickle.dumps(found)) is found,
        "others": [find(name).__name__ for name in trainers.__all__],
        "stock": find("nnUNetTrainer").__name__,
    }
    for method in sys.argv[1:]:
        with multiprocessing.get_context(method).Pool(1) as pool:
            answer[method] = pool.apply(home_of, (found,))
    print(json.dumps(answer))
"""


def last_line(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def folder_of(environment):
    return str(environment.site_packages / "trainers" / "_nnunet_discovery")


def look_up(environment, *methods):
    script = environment.folder / "look_up.py"
    script.write_text(LOOK_UP)
    return json.loads(last_line(environment.run(script, *methods)))


def test_wheel_holds_the_four_packages_and_the_start_up_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {
        *("nnunet_imbal", "monai_ext", "trainers", "numba_kernels"),
        *("nnunet_imbal.pth", "nnunet_imbal.start", "_nnunet_imbal_start.py"),
    }
    assert not [name for name in names if "test" in name.lower()]
    assert {f"{top}/py.typed" for top in tops if "." not in top} <= set(names)


def test_wheel_holds_the_monai_bundle(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("monai_ext/bundle/")}
    parts = {name.removeprefix("monai_ext/bundle/") for name in names}
    assert {f"configs/{name}.json" for name in ("train", "evaluate", "inference", "metadata")} <= parts
    assert {"configs/logging.conf", "docs/README.md", "cases.py"} <= parts


def test_nnunet_finds_the_trainer_of_the_wheel(installed):
    answer = look_up(installed, "fork", "spawn", "forkserver")
    assert answer["same"]
    assert answer["pickles"]
    assert answer["stock"] == "nnUNetTrainer"
    assert {answer[key] for key in ("home", "fork", "spawn", "forkserver")} == {"trainers.imbal_trainer"}


def test_nnunet_finds_the_trainer_of_an_editable_install(new_environment, editable_wheel):
    new_environment.install(editable_wheel)
    answer = look_up(new_environment)
    assert answer["same"]
    assert answer["pickles"]
    assert "_nnunet_discovery" in last_line(new_environment.run("-c", SHOW))


def test_folders_of_the_user_come_first(installed):
    mine = os.pathsep.join(["/mine/one", "/mine/two"])
    value = last_line(installed.run("-c", SHOW, **{VARIABLE: mine}))
    assert value == os.pathsep.join([mine, folder_of(installed)])


def test_folder_is_not_listed_twice(installed):
    mine = os.pathsep.join([folder_of(installed) + os.sep, "/mine"])
    assert last_line(installed.run("-c", SHOW, **{VARIABLE: mine})) == mine


def test_child_processes_inherit_the_folder_once(installed):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHOW!r}], check=True)"
    assert last_line(installed.run("-c", code)) == folder_of(installed)


def test_opt_out(installed):
    assert last_line(installed.run("-c", SHOW, NNUNET_IMBAL_AUTOREGISTER="0")) == "None"


def test_explicit_ways_work_without_the_start_up_file(installed):
    command = installed.python.with_name("nnunet-imbal")
    run = f"import subprocess, sys; sys.exit(subprocess.call([{str(command)!r}, *sys.argv[1:]]))"
    opted_out = {"NNUNET_IMBAL_AUTOREGISTER": "0"}
    assert last_line(installed.run("-c", run, "trainers-path", **opted_out)) == folder_of(installed)
    shown = installed.run("-c", run, "run", str(installed.python), "-c", SHOW, **opted_out)
    assert last_line(shown) == folder_of(installed)


def test_uninstall_leaves_nothing(new_environment, wheel):
    before = new_environment.files()
    new_environment.install(wheel)
    assert last_line(new_environment.run("-c", SHOW)) == folder_of(new_environment)
    new_environment.uninstall()
    assert new_environment.files() == before
    assert last_line(new_environment.run("-c", SHOW)) == "None"


def test_stock_trainer_is_found_after_uninstall(new_environment, wheel):
    new_environment.install(wheel)
    new_environment.uninstall()
    new_environment.borrow_packages()
    code = "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; print(find('{}'))"
    assert "nnUNetTrainer" in last_line(new_environment.run("-c", code.format("nnUNetTrainer")))
    gone = new_environment.run("-c", code.format("ImbalTrainer"))
    assert "Could not find requested nnunet trainer ImbalTrainer" in gone.stderr


def test_half_removed_plugin_is_silent(new_environment, wheel):
    new_environment.install(wheel)
    shutil.rmtree(new_environment.site_packages / "trainers")
    done = new_environment.run("-c", SHOW)
    assert (done.stdout.strip(), done.stderr) == ("None", "")


def test_foreign_trainers_package_is_named(installed, tmp_path):
    foreign = tmp_path / "trainers.py"
    foreign.write_text("")
    code = f"import sys; sys.path.append({folder_of(installed)!r}); import imbal_trainers"
    done = installed.run("-c", code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert f"hidden by {foreign}" in done.stderr
    assert "rename" in done.stderr


def test_environment_without_the_plugin_is_not_disturbed(installed, new_environment, tmp_path):
    """The variable can reach the Python of another environment."""
    folder = shutil.copytree(folder_of(installed), tmp_path / "copy")
    done = new_environment.run("-c", f"import sys; sys.path.append({str(folder)!r}); import imbal_trainers")
    assert (done.returncode, done.stderr) == (0, "")


def test_start_up_imports_nothing_else(installed, new_environment):
    loaded = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    with_plugin, without = (set(json.loads(last_line(e.run("-c", loaded)))) for e in (installed, new_environment))
    assert with_plugin - without == {"_nnunet_imbal_start"}


def test_start_up_takes_less_than_a_few_milliseconds(installed):
    """Measured on two slow cores: 0.3 ms; the bound leaves room for a busy machine."""
    import_us = statistics.median(_import_microseconds(installed) for _ in range(9))
    code = "import timeit; from _nnunet_imbal_start import register; print(timeit.timeit(register, number=1000))"
    call_us = float(last_line(installed.run("-c", code))) * 1000
    print(f"start-up: import {import_us:.0f} us, call {call_us:.0f} us")
    assert import_us + call_us < 5000


def _import_microseconds(environment):
    lines = environment.run("-X", "importtime", "-c", "pass").stderr.splitlines()
    return int(next(line for line in lines if "_nnunet_imbal_start" in line).split("|")[1])


def test_start_file_names_the_same_callable(installed):
    entry = (installed.site_packages / "nnunet_imbal.start").read_text().strip()
    code = f"import pkgutil; print(pkgutil.resolve_name({entry!r}).__name__)"
    assert last_line(installed.run("-c", code)) == "register"
    legacy = (installed.site_packages / "nnunet_imbal.pth").read_text()
    assert legacy.strip() == "import _nnunet_imbal_start; _nnunet_imbal_start.register()"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no read-only site-packages of this kind")
def test_start_up_runs_without_byte_code_cache(installed):
    assert last_line(installed.run("-B", "-c", SHOW, PYTHONDONTWRITEBYTECODE="1")) == folder_of(installed)
