"""``dipy_inpaint_ldm`` changes voxels of the mask, and no others."""

import errno
import gzip
import json
import os
from pathlib import Path
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import answer
import pytest
from scans import KINDS, make_scan, raw_voxels, save

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._sidecars import sidecar, write_with_sidecar
from dipy_ldm.data.channels import Unnamed
from dipy_ldm.workflows import _outputs as outputs, _process_scans as process_scans

FAST = ("--steps", 2, "--resamplings", 2)


def ball(radius=3):
    distance = (np.indices((31, 24, 27)).T - [15, 12, 13]) ** 2
    return distance.sum(-1).T <= radius**2


def content(path):
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


@pytest.mark.parametrize("kind", KINDS)
def test_inpaint_changes_voxels_of_the_mask_alone(command, model_path, tmp_path, kind):
    path, raw, affine = make_scan(tmp_path, kind)
    save(tmp_path / "lesion.nii", ball(), affine)
    options = ("--mask_files", "lesion.nii", *FAST)
    command("inpaint", model_path, path, *options)
    inpainted = tmp_path / "scan_inpainted.nii.gz"
    voxels = raw_voxels(inpainted)
    assert voxels.dtype == raw.dtype
    npt.assert_array_equal(voxels[~ball()], raw[~ball()])
    assert (voxels[ball()] != raw[ball()]).mean() > 0.8
    # Of the header, too, but for what says that it is synthetic.
    before, after = content(path), content(inpainted)
    offset = nib.load(path).dataobj.offset
    place = nib.load(path).header.structarr.dtype.fields["descrip"][1]
    assert len(before) == len(after)
    assert before[:place] == after[:place]
    assert before[place + 80 : offset] == after[place + 80 : offset]
    assert b"synthetic: dipy_ldm" in after[place : place + 80]
    mask = nib.load(tmp_path / "scan_inpainted_mask.nii.gz")
    npt.assert_array_equal(np.asanyarray(mask.dataobj), ball())
    npt.assert_allclose(mask.affine, nib.load(path).affine, atol=1e-5)
    facts = json.loads((tmp_path / "scan_inpainted.json").read_text())
    assert facts["Synthetic"] and facts["Steps"] == 2 and facts["Resamplings"] == 2
    assert facts["Sources"] == [str(path), "lesion.nii"]
    # Results and masks among the volumes are not inpainted.
    files = sorted(tmp_path.iterdir())
    results = (inpainted, tmp_path / "scan_inpainted_mask.nii.gz")
    command("inpaint", model_path, path, *results, *options, "--resume")
    assert sorted(tmp_path.iterdir()) == files


def test_inpaint_ignores_content_under_the_mask(command, model_path, tmp_path):
    path, raw, affine = make_scan(tmp_path, "float64", "a")
    spoilt = np.where(ball(), 1e4, raw)
    # Of the same name, and thus of the same noise.
    (tmp_path / "b").mkdir()
    nib.save(nib.Nifti1Image(spoilt, affine), tmp_path / "b/a.nii.gz")
    save(tmp_path / "lesion.nii", ball(), affine)
    for name, place in ((path, "."), ("b/a.nii.gz", "b")):
        options = ("--mask_files", "lesion.nii", *FAST, "--out_dir", place)
        command("inpaint", model_path, name, *options)
    a, b = (raw_voxels(tmp_path / f"{at}a_inpainted.nii.gz") for at in ("", "b/"))
    npt.assert_allclose(a[ball()], b[ball()], rtol=1e-5)


def test_inpaint_with_noise_of_each_volume(command, model_path, tmp_path):
    # One scan under three names.
    for stem in "abc":
        path, _, affine = make_scan(tmp_path, "float64", stem)
    save(tmp_path / "lesion.nii", ball(), affine)

    def inpaint(stems, folder):
        files = [f"{stem}.nii.gz" for stem in stems]
        options = ("--mask_files", "lesion.nii", *FAST, "--out_dir", folder)
        command("inpaint", model_path, *files, *options)
        paths = [tmp_path / folder / f"{stem}_inpainted" for stem in stems]
        facts = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
        voxels = [raw_voxels(path.with_suffix(".nii.gz")) for path in paths]
        return voxels, [fact["Noise"] for fact in facts]

    (a, b, c), numbers = inpaint("abc", "all")
    assert len(set(numbers)) == 3
    assert not np.allclose(a, b) and not np.allclose(b, c)
    # Wherever a volume stands, and beside whatever others.
    (b_again, a_again), numbers_again = inpaint("ba", "two")
    assert numbers_again == numbers[1::-1]
    npt.assert_array_equal(b_again, b)
    npt.assert_array_equal(a_again, a)


@pytest.mark.parametrize(
    ("stem", "end", "name", "mask"),
    [
        ("scan", "x", "scan_x", "scan_x_mask"),
        (
            "sub-1_ses-a_T1w",
            "x",
            "sub-1_ses-a_desc-x_T1w",
            "sub-1_ses-a_desc-xMask_T1w",
        ),
        ("sub-1_desc-y_bold", "x", "sub-1_desc-yX_bold", "sub-1_desc-yXMask_bold"),
        ("sub-1_T1w", "my_own", "sub-1_T1w_my_own", "sub-1_T1w_my_own_mask"),
        ("sub-1", "x", "sub-1_x", "sub-1_x_mask"),
    ],
)
def test_bids_name_and_further_output(stem, end, name, mask):
    file = Path(f"cohort/{stem}.nii.gz")
    names = outputs.name_outputs([file], Path("out", end), "x", outputs.bids_name)
    assert names == {file: Path(f"out/{name}.nii.gz")}
    assert outputs.further_output(names[file], "_mask") == Path(f"out/{mask}.nii.gz")
    numbered = outputs.further_output(names[file], "-0002").name
    assert numbered.endswith(("-0002.nii.gz", "0002_T1w.nii.gz", "0002_bold.nii.gz"))


def test_number_noise_by_the_name_within_the_inputs():
    files = [Path(f"/data/sub-{i}/T1.nii.gz") for i in range(500)]
    noise = outputs.number_noise(files)
    assert len(set(noise.values())) == 500
    assert outputs.number_noise(files[::-1]) == noise
    # Wherever the cohort lies, and whatever results are called.
    moved = [Path("/copy", *file.parts[2:]) for file in files]
    assert [*outputs.number_noise(moved).values()] == [*noise.values()]
    # Without others of its name, it needs no folder.
    one, other = (outputs.number_noise([file]) for file in files[:2])
    assert [*one.values()] == [*other.values()]
    # Nor need a name be text.
    assert outputs.number_noise([Path(os.fsdecode(b"scan\xe9.nii.gz"))])


def test_inpaint_samples_within_a_dilated_mask(command, model_path, tmp_path):
    path, raw, affine = make_scan(tmp_path, "float64")
    save(tmp_path / "lesion.nii", ball(3), affine)
    arguments = ("inpaint", model_path, path, "--mask_files", "lesion.nii", *FAST)
    command(*arguments, "--n_samples", 3, "--dilate", 3.6)
    written = {p.name.removeprefix("scan_inpainted") for p in tmp_path.glob("*_inp*")}
    ends = ["-0000", "-0001", "-0002", "_mean", "_std", "_mask"]
    assert written == {f"{end}{kind}" for end in ends for kind in (".nii.gz", ".json")}
    images = (nib.load(tmp_path / f"scan_inpainted{end}.nii.gz") for end in ends)
    *samples, mean, std, mask = (image.get_fdata() for image in images)
    inside = mask > 0
    assert (inside & ~ball(3)).any() and inside[ball(3)].all()
    npt.assert_allclose(mean, np.mean(samples, 0), rtol=1e-5)
    npt.assert_array_equal(mean[~inside], raw[~inside])
    npt.assert_allclose(std[inside], np.std(samples, 0, ddof=1)[inside], atol=1e-4)
    assert std[inside].max() > 0 and not std[~inside].any()
    # One alone is the first of several.
    command(*arguments, "--dilate", 3.6, "--force")
    npt.assert_array_equal(raw_voxels(tmp_path / "scan_inpainted.nii.gz"), samples[0])


def run_out_of_space(*arguments, **options):
    raise OSError(errno.ENOSPC, "no space left")


def interrupt(source, target, replace=os.replace):
    if target.suffix == ".gz":
        raise KeyboardInterrupt
    replace(source, target)


@pytest.mark.parametrize(
    ("owner", "name", "fail"),
    [
        (nib.Nifti1Image, "to_stream", run_out_of_space),
        (Path, "write_text", run_out_of_space),
        (os, "replace", interrupt),
    ],
)
def test_write_with_sidecar_leaves_no_sidecar_of_another(
    tmp_path, monkeypatch, owner, name, fail
):
    def write(value):
        facts = {"ModelFingerprint": "0", "Value": value}
        image = np.full((4, 5, 6), value)
        write_with_sidecar(tmp_path / "a.nii.gz", image, np.eye(4), "int8", facts)

    write(1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        failures = (KeyboardInterrupt, OSError)
        with pytest.raises(failures, match="^$|gz \\(no space left\\); free"):
            write(2)
    # The old one is gone, and the new one not there.
    expected = {} if fail is interrupt else before
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == expected


def write_outputs(task):
    """Write what a command leaves of a task."""
    facts = process_scans._with_fingerprints(task).facts
    for path in task.outputs:
        write_with_sidecar(path, np.ones((4, 5, 6)), np.eye(4), "int8", facts)


@pytest.fixture
def task(tmp_path):
    """Return a task that is done."""
    scan = tmp_path / "scan.nii"
    scan.write_bytes(b"voxels")
    outputs = [tmp_path / "out.nii.gz", tmp_path / "out_mask.nii.gz"]
    facts = {"Strength": 0.3, "Sources": [str(scan)], "ModelFingerprint": "0"}
    facts["GeneratedBy"] = {"Name": "dipy_ldm"}
    task = process_scans.Task([process_scans.Part(Unnamed(), scan, outputs)], facts)
    write_outputs(task)
    return task


def is_done(task, force=False, **facts):
    flow = SimpleNamespace(_force_overwrite=force)
    return process_scans._is_done(flow, task._replace(facts=task.facts | facts))


def test_is_done_refuses_outputs_of_other_runs(task):
    volume, facts = task.outputs[0], sidecar(task.outputs[0])
    # As if a second run had ended after its first volume.
    facts.write_text(facts.read_text().replace("0.3", "0.8"))
    for strength, change in ((0.3, "was 0.8 and is 0.3"), (0.8, "was 0.3 and is 0.8")):
        with pytest.raises(InputError, match=f"of another run .Strength {change}"):
            is_done(task, Strength=strength)
    # Nor where the second makes others, too.
    facts.unlink()
    volume.unlink()
    with pytest.raises(InputError, match="out_mask.nii.gz is of another run .Strength"):
        is_done(task, Strength=0.8)
    assert not is_done(task)
    # Or where others than dipy_ldm made the volume, or its JSON file alone.
    volume.touch()
    foreign = '{"GeneratedBy": [{"Name": "others"}]}'
    for text, name in (("", "out.nii.gz"), (foreign, "out.json")):
        facts.write_text(text)
        with pytest.raises(InputError, match=f"{name}.* exists? already; name another"):
            is_done(task)
        volume.unlink(missing_ok=True)
    assert not is_done(task, force=True)


def test_is_done_after_a_change_of_inputs(task):
    assert is_done(task)
    # The same elsewhere is no change.
    moved = shutil.copy(task.file, task.file.with_name("moved.nii"))
    assert is_done(task, Sources=[str(moved)])
    task.file.write_bytes(b"others")
    with pytest.raises(InputError, match=r"scan.nii has changed\); resume with"):
        is_done(task)
    assert not is_done(task, force=True)
    write_outputs(task)
    assert is_done(task)
    task.file.unlink()
    with pytest.raises(InputError, match="scan.nii can't be read .No such file"):
        is_done(task)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("", "name one with --mask_files"),
        ("--mask_files gone.nii", "there is no file gone.nii"),
        ("--mask_files most.nii", "covers the whole image"),
        ("--mask_files far_mask.nii", "far_mask.nii has nothing on the"),
        ("--mask_files most.nii --dilate -1", "--dilate must be at least 0"),
        ("--mask_files most.nii --n_samples 0", "--n_samples must be at least 1"),
        ("--mask_files most.nii --steps 0", "--steps must be at least 1"),
    ],
)
def test_inpaint_refuses(command, model_path, tmp_path, options, sentence):
    path, raw, affine = make_scan(tmp_path)
    save(tmp_path / "most.nii", ball(19), affine)
    if "far" in options:
        path, far = tmp_path / "far.nii", np.eye(4)
        far[:3, 3] = 30, 30, 900
        save(path, raw, far)
        save(tmp_path / "far_mask.nii", ball(6), far)
    before = sorted(tmp_path.iterdir())
    output = command("inpaint", model_path, path, *options.split(), status=2)
    assert sentence in answer(output)
    assert sorted(tmp_path.iterdir()) == before


def test_inpaint_reports_all_bad_masks_at_once(command, model_path, tmp_path):
    for name in "abc":
        _, _, affine = make_scan(tmp_path, name=name)
    masks = {"good": ball(), "empty": ball() & False, "all": ball() | True}
    for name, mask in masks.items():
        save(tmp_path / f"{name}.nii", mask, affine)
        save(tmp_path / f"{name}-moved.nii", mask, affine + np.eye(4, 4, 3) * 20)

    def refuse(*masks):
        scans = (f"{name}.nii.gz" for name in "abc")
        files = (f"{mask}.nii" for mask in masks)
        arguments = (model_path, *scans, "--mask_files", *files)
        return command("inpaint", *arguments, status=2)

    output = refuse("good", "empty", "all")
    assert "empty.nii is empty; give" in output
    assert "all.nii covers the whole image" in output
    output = refuse("good", "empty-moved", "all-moved")
    sentence = (
        "mask {}-moved.nii has another grid (shape or affine) than {}.nii.gz; res"
    )
    assert sentence.format("empty", "b") in output
    assert sentence.format("all", "c") in output


def test_inpaint_by_workers(model_path, command, tmp_path, monkeypatch):
    for name in "abc":
        _, _, affine = make_scan(tmp_path, name=name)
        save(tmp_path / f"{name}_lesion.nii", ball(ord(name) - 95), affine)
    cluster = {"worker": [f"localhost:{port}" for port in (8001, 8002)]}
    task = {"type": "worker", "index": 1}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    masks = (f"{name}_lesion.nii" for name in "abc")
    options = (*FAST, "--out_dir", "out", "--mask_files", *masks)
    files = (f"{name}.nii.gz" for name in "abc")
    output = command("inpaint", model_path, *files, *options)
    assert "inpaint:" not in output  # progress is the chief's
    written = sorted(
        path.name for path in (tmp_path / "out").glob("*_inpainted.nii.gz")
    )
    assert written == ["c_inpainted.nii.gz"]
    facts = json.loads((tmp_path / "out/c_inpainted.json").read_text())
    assert facts["Sources"] == ["c.nii.gz", "c_lesion.nii"]
    assert (tmp_path / "out/inpainted.worker-1.log").exists()
