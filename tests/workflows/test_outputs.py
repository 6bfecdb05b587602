"""Outputs: their names, and the last line of a command."""

from pathlib import Path

import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows._outputs import (
    LDMFlow,
    claimed_output,
    name_written,
    output_paths,
)


@pytest.mark.parametrize("name", ["", "."])
def test_an_empty_name_is_refused(name):
    with pytest.raises(InputError, match="`out_samples` is empty; give a name"):
        output_paths(LDMFlow(), "model", "out", out_samples=name)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["a.npz", "a.png"], "a.npz, a.png"),
        (["out/a.npz", "out/a.png"], "a.npz, a.png in out"),
        (["/out/a.npz", "/out/b/a.png"], "a.npz, b/a.png in /out"),
        # As of a training with an absolute --out_model.
        (["/out/a.npz", "a.png"], "out/a.npz, usr/a.png in /"),
    ],
)
def test_name_written_names_the_common_folder(files, named, monkeypatch):
    monkeypatch.chdir("/usr")
    assert name_written(list(map(Path, files))) == f"wrote {named}"


def test_claimed_output_removes_new_folders_if_nothing_is_written(tmp_path):
    for names, remaining in (
        ((), []),
        (("a",), ["sub-1", "sub-1/anat", "sub-1/anat/a"]),
    ):
        with claimed_output(tmp_path / "sub-1/anat/a"):
            for name in names:
                (tmp_path / "sub-1/anat" / name).touch()
        paths = (path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
        assert sorted(map(str, paths)) == remaining
