"""The source archive and the wheel, installed outside the repository."""

import os
from pathlib import Path
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
from processes import run
import pytest

from dipy_ldm import __version__

ROOT = Path(__file__).parents[1]
NAME = f"dipy_ldm-{__version__}"
LICENCES = ("LICENSE", "dipy_ldm/data/MNIST-LICENSE.md")
TASKS = "train", "generate", "denoise", "inpaint", "check", "evaluate", "audit"
COMMANDS = (*(f"dipy_{task}_ldm" for task in TASKS), "dipy_ldm_bids")
# What is in use here must not be found there.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}


def build(kind, source, folder):
    """Build with the hatchling of this environment, without a download."""
    hatchling = sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder
    subprocess.run(hatchling, cwd=source, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return the unpacked source archive."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, folder / "dist")) as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """Return the wheel that is built from the source archive."""
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """Return the programs of an environment that has the wheel.

    What it depends on comes from the environment of the tests: last, and without the
    ``.pth`` files there, of which one leads to the package that is worked on.
    """
    folder = tmp_path_factory.mktemp("user")
    for command in (
        ("venv", "--python", sys.executable, "env"),
        ("pip", "install", "--python", "env", "--no-deps", wheel),
    ):
        status, _, stderr = run("uv", "--offline", *command, cwd=folder)
        assert status == 0, stderr
    (site,) = folder.glob("env/lib/python*/site-packages")
    packages = [path for path in sys.path if Path(path).name.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(packages))
    return folder / "env/bin"


def files_of(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def list_git_files(*options):
    command = "git", "ls-files", *options
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("only a clone knows its files")
    return set(listed.stdout.splitlines())


def test_source_archive_has_the_tracked_files(source):
    packed = files_of(source)
    kept_back = {".ci/run", ".pre-commit-config.yaml"}
    assert list_git_files() - packed == kept_back
    new = list_git_files("--others", "--exclude-standard")
    assert packed - list_git_files() - new == {"PKG-INFO"}


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 60e6


def test_the_wheel_has_the_package_and_no_more(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    package = {name for name in files_of(source) if name.startswith("dipy_ldm/")}
    assert names - about == package
    licences = {f"{NAME}.dist-info/licenses/{name}" for name in LICENCES}
    assert licences < about


LOOK_AROUND = """
from importlib.metadata import distribution
import dipy_ldm, dipy_ldm.data as data
print(dipy_ldm.__file__)
print(data.load_mnist("test")[0].shape)
for command in distribution("dipy_ldm").entry_points:
    assert callable(command.load())
    print(command.name)
"""


def test_the_commands_run_elsewhere(bin_folder, tmp_path):
    def call(command, *arguments):
        done = run(bin_folder / command, *arguments, cwd=tmp_path, env=ENVIRONMENT)
        status, stdout, stderr = done
        assert status == 0, stderr
        return stdout

    where, shape, *commands = call("python", "-c", LOOK_AROUND).splitlines()
    assert Path(where).is_relative_to(bin_folder.parent)
    assert shape == "(10000, 28, 28, 1)"
    assert sorted(commands) == sorted(COMMANDS)
    for command in commands:
        assert (bin_folder / command).stat().st_mode & 0o111
    assert f"usage: {COMMANDS[0]}" in call(COMMANDS[0], "--help")
    assert call(COMMANDS[-1], "--version").strip() == f"dipy_ldm {__version__}"
    options = "--n_samples", 4, "--steps", 2, "--out_dir", "digits"
    call("dipy_generate_ldm", "mnist", *options)
    with np.load(tmp_path / "digits/samples.npz") as samples:
        assert samples["images"].shape == (4, 28, 28, 1)
