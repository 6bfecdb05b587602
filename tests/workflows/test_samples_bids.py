"""Generated volumes as a BIDS dataset."""

from concurrent.futures import ThreadPoolExecutor
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from processes import refuse_faults_of_bids
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._sidecars import sidecar
from dipy_ldm.workflows import _bids_dataset as dataset, _samples as bids

DESCRIBED = {"age": {"Description": "asked for", "Units": "years"}}


def put(root, number, **conditions):
    """Put a sample into a dataset, as far as its table needs it."""
    scan = bids.scan_path(root, number, "T1w")
    scan.parent.mkdir(parents=True, exist_ok=True)
    scan.touch()
    sidecar(scan).write_text(json.dumps({"Conditions": conditions}))


@pytest.mark.parametrize(
    ("number", "kind", "path"),
    [
        (1, ["T1w"], "sub-S0001/anat/sub-S0001_desc-synthetic_T1w.nii.gz"),
        (12345, ["dwi"], "sub-S12345/dwi/sub-S12345_desc-synthetic_dwi.nii.gz"),
        (1, ["FA", "FA"], "sub-S0001/dwi/sub-S0001_desc-synthetic_FA.nii.gz"),
        (1, ["bold"], "sub-S0001/func/sub-S0001_desc-synthetic_bold.nii.gz"),
        (1, ["cbf"], "sub-S0001/perf/sub-S0001_desc-synthetic_cbf.nii.gz"),
        (1, ["epi"], "sub-S0001/fmap/sub-S0001_desc-synthetic_epi.nii.gz"),
    ],
)
def test_scan_path(number, kind, path):
    assert bids.scan_path(Path(), number, *kind) == Path(path)


def test_place_in_dataset_of_a_file_beyond_datasets():
    place = dataset.place_in_dataset(Path(), Path("sub-1_dwi.nii.gz"), "x")
    assert place == Path("sub-1/dwi/x")


def validate(root, files):
    """Write volumes of a dataset, which the validator of BIDS must accept."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        n = (2,) if file.parent.name == "func" else ()
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, *n), "float32"), np.eye(4)), file)
        dataset.write_json(sidecar(file), {"SkullStripped": False, "Sources": ["x"]})
    dataset.begin_dataset(root, dataset.ignored_names(files))
    refuse_faults_of_bids(root)


def test_names_that_bids_lacks_are_ignored_by_its_validator(tmp_path):
    further = "swi magnitude TB1map trace T1 FA DWI".split()
    ends = [*dataset._FOLDERS, *dataset._NEEDED, *further]
    validate(tmp_path, [bids.scan_path(tmp_path, *pair) for pair in enumerate(ends)])


def test_names_with_all_entities_are_valid(tmp_path):
    sources = {
        end: Path(f"sub-1_{'flip-1_mt-on' if key == 'mt' else f'{key}-1'}_{end}.nii.gz")
        for end, key in dataset._NEEDED.items()
        if key != "sub"
    }
    files = [bids.source_path(tmp_path, s, "", end) for end, s in sources.items()]
    assert not dataset.ignored_names(files)
    validate(tmp_path, files)


def test_names_of_bids_are_not_ignored():
    names = "T1w dwi dseg task-a_bold inv-1_MP2RAGE desc-synthetic_T2w"
    files = [Path(f"sub-1_{name}.nii.gz") for name in names.split()]
    tables = [Path(f"sub-1_dwi{end}") for end in (".bval", ".bvec")]
    assert dataset.ignored_names([*files, *tables]) == ["*_dwi.bval", "*_dwi.bvec"]
    stems = "b0 desc-FA_dwimap run-1_bold run-2_bold dwi".split()
    files = [Path(f"sub-1_{name}.json") for name in stems]
    ignored = dataset.ignored_names([*files, Path("code/samples.png")])
    assert ignored == ["*_b0.*", "*_dwimap.*", "*_bold.*", "*_dwi.*"]


@pytest.mark.parametrize(
    ("source", "end", "kind", "name"),
    [
        ("sub-1_ses-2_run-1_FLAIR", "", ["T1w"], "run-1_desc-synthetic_T1w"),
        ("sub-1_ses-2_desc-x_T1w", "0003", ["T2w"], "desc-synthetic0003_T2w"),
        ("sub-1_ses-2_b0", "", ["dwi"], "desc-synthetic_dwi"),
        ("sub-1_ses-2_T1w", "", ["dwimap", "desc-FA"], "desc-FA_dwimap"),
        ("sub-1_ses-2_T1w", "0001", ["dseg", "dseg"], "desc-synthetic0001_dseg"),
    ],
)
def test_samples_are_named_after_sources(tmp_path, source, end, kind, name):
    source = tmp_path / "raw/anat" / f"{source}.nii.gz"
    file = bids.source_path(tmp_path, source, end, *kind).relative_to(tmp_path)
    folder = "dwi" if kind[0].startswith("dwi") else "anat"
    assert str(file) == f"sub-1/ses-2/{folder}/sub-1_ses-2_{name}.nii.gz"


def test_participants_table_has_requested_conditions(tmp_path):
    dataset.begin_dataset(tmp_path)
    put(tmp_path, 0, age=70.0, sex="F")
    put(tmp_path, 10000)
    put(tmp_path, 2, age=61.5)
    bids.list_participants(tmp_path, DESCRIBED)
    assert (tmp_path / "participants.tsv").read_text() == (
        "participant_id\tage\tsex\nsub-S0000\t70\tF\nsub-S0002\t61.5\tn/a\n"
        "sub-S10000\tn/a\tn/a\n"
    )


def test_list_participants_of_samples_that_are_added_at_once(tmp_path):
    def add(numbers):
        dataset.begin_dataset(tmp_path)
        for number in numbers:
            put(tmp_path, number, age=float(number))
            bids.list_participants(tmp_path, DESCRIBED)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(add, [range(i, 24, 3) for i in range(3)]))
    lines = (tmp_path / "participants.tsv").read_text().splitlines()
    names = [line.split("\t")[0] for line in lines[1:]]
    assert names == [f"sub-S{number:04}" for number in range(24)]
    assert lines[-1].endswith("\t23")


@pytest.mark.parametrize(
    "name", ["participants.tsv", "sub-01/x", "dataset_description.json"]
)
def test_dataset_of_another_program_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"Name": "x", "GeneratedBy": [{"Name": "other"}]}')
    with pytest.raises(InputError, match="holds another dataset .* another folder"):
        dataset.refuse_other_dataset(tmp_path)


def test_our_own_and_an_empty_folder_are_not_refused(tmp_path):
    dataset.refuse_other_dataset(tmp_path / "new")
    dataset.begin_dataset(tmp_path / "new")
    put(tmp_path / "new", 1)
    before = sorted(tmp_path.rglob("*"))
    dataset.refuse_other_dataset(tmp_path / "new")
    dataset.begin_dataset(tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_texts_of_the_user_are_kept(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / ".bidsignore").write_text("mine/\n*_MD.*")
    dataset.begin_dataset(tmp_path, ["*_FA.*", "*_MD.*"])
    assert not (tmp_path / "README").exists()
    assert (tmp_path / ".bidsignore").read_text() == "mine/\n*_MD.*\n*_FA.*\n"
    # As of a second run, of other channels.
    dataset.begin_dataset(tmp_path, ["*_b0.*"])
    assert (tmp_path / ".bidsignore").read_text().splitlines()[-1] == "*_b0.*"


def test_the_suffix_is_the_users_or_that_of_the_model():
    assert bids.check_suffix("FLAIR", "T1w") == "FLAIR"
    assert bids.check_suffix(None, "T1w") == "T1w"
    with pytest.raises(InputError, match="give a `suffix`, such as T1w"):
        bids.check_suffix(None, None)
    for bad in ("_T1w", "T1 w", "../T1w"):
        with pytest.raises(InputError, match="suffix must be of letters and digits"):
            bids.check_suffix(bad, None)
