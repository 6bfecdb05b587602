"""Outputs: how they are named, and what is said of them in the end."""

from pathlib import Path

import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows._outputs import LDMFlow, name_written, output_paths


@pytest.mark.parametrize("name", ["", "."])
def test_an_empty_name_is_refused(name):
    with pytest.raises(InputError, match="`out_samples` is empty; give a name"):
        output_paths(LDMFlow(), "model", "out", out_samples=name)


@pytest.mark.parametrize(
    ("files", "where"),
    [
        (["a.npz", "a.png"], ""),
        (["out/a.npz", "out/a.png"], " in out"),
        (["/out/a.npz", "/out/b/a.png"], " in /out"),
        # As of a training with an absolute --out_model.
        (["/out/a.npz", "a.png"], " in /"),
    ],
)
def test_the_folder_of_all_files_is_named(files, where, monkeypatch):
    monkeypatch.chdir("/usr")
    names = ", ".join(Path(file).name for file in files)
    assert name_written(list(map(Path, files))) == f"wrote {names}{where}"
