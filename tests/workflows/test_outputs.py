"""Outputs: what is said of them in the end."""

from pathlib import Path

import pytest

from dipy_ldm.workflows._outputs import name_written


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
