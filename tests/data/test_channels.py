"""Named channels: stacking, scaling, and conversion back."""

import logging
import shutil

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest
from scans import disk_error

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid
from dipy_ldm.data.channels import (
    MAX_LABELS,
    Channel,
    Labels,
    Map,
    Unnamed,
    as_channels,
    check_same,
    check_same_sources,
    choose_channels,
    from_saved,
    scan_column,
    split_channels,
    to_saved,
)

SHAPE, AFFINE = (9, 8, 7), np.diag([4.0, 4, 4, 1])


def put(root, subject, end, data, affine=AFFINE):
    """Write a file of a BIDS dataset."""
    folder = root / subject.replace("_", "/") / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{subject}_{end}.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), file)
    return file


def test_scan_column_is_of_scans_then_maps():
    labels, scan, values = Labels("dseg", labels=(3, 41)), Channel("T1w"), Map("FA")
    assert scan_column([labels, values, scan]) == 3
    assert scan_column([labels, values]) == 2
    assert scan_column([labels]) is None
    assert scan_column([]) == scan_column([Unnamed(n=2)]) == 0


@pytest.fixture
def anatomy():
    """Return a segmentation of three labels."""
    labels = np.zeros(SHAPE, "int16")
    labels[2:7, 2:6, 2:5], labels[3:5, 3:5, 3], labels[5, 4, 3] = 3, 41, 1000
    return labels


@pytest.fixture
def bids(tmp_path, anatomy):
    """Return a dataset of three subjects, of whom one has no T2."""
    rng = np.random.default_rng(0)
    for subject in ("sub-01", "sub-02_ses-1", "sub-03"):
        scan = (anatomy > 0) * rng.uniform(50, 99, SHAPE).astype("float32")
        put(tmp_path / "bids", subject, "T1w", scan)
        put(tmp_path / "bids", subject, "dseg", anatomy)
        put(tmp_path / "bids", subject, "desc-FA_dwimap", scan / 100)
        if subject != "sub-03":
            put(tmp_path / "bids", subject, "T2w", 2000 - scan)
    table = "index\tname\tcolor\n3\tcortex\t#ff0000\n7\tnone\t#000000\n"
    (tmp_path / "bids" / "dseg.tsv").write_text(table)
    return tmp_path / "bids"


def test_load_volumes_groups_channels_of_complete_subjects(bids, load, anatomy, caplog):
    caplog.set_level(logging.INFO, "dipy_ldm")
    names = ["T1w", "T2w", "dseg", "desc-FA"]
    volumes = load(bids, channels=names)
    assert "2 of 3 subjects (or their sessions) have all of T1w, T2w" in caplog.text
    assert "left out: sub-03 (no T2w)." in caplog.text
    assert volumes.images.shape == (2, *SHAPE, 1 + 1 + 3 + 1)
    assert volumes.subjects == ["sub-01", "sub-02"]
    assert [channel.name for channel in volumes.channels] == names
    parts = split_channels(volumes.images, volumes.channels)
    assert parts["dseg"].dtype == np.int32
    npt.assert_array_equal(parts["dseg"][1], anatomy)
    fa = nib.load(bids / "sub-01/anat/sub-01_desc-FA_dwimap.nii.gz").get_fdata()
    npt.assert_allclose(parts["desc-FA"][0], fa, atol=1e-6)
    for none in (None, ()):  # such as channels_ of a model without any
        unnamed = load(bids / "sub-01", suffix="T1w", channels=none)
        assert unnamed.channels == ()
        npt.assert_array_equal(parts["T1w"][:1], unnamed.images[..., 0])


def test_load_volumes_takes_sources_of_several_channels(bids, load):
    both = np.random.default_rng(1).uniform(50, 99, (*SHAPE, 2)).astype("float32")
    for subject in ("sub-01", "sub-02_ses-1", "sub-03"):
        put(bids.parent / "sources", subject, "pair", both)
    source = bids.parent / "sources"
    volumes = load(bids, channels=["T1w", "dseg"], source_files=[source])
    assert volumes.sources.shape == (3, *SHAPE, 2)
    with pytest.raises(InputError, match="channels"):
        load(bids, suffix="T1w", source_files=[source])


def test_from_saved_restores_records(bids, load):
    volumes = load(bids, channels=["dseg", "T1w", "desc-FA=-1:2:mm"])
    records = from_saved(to_saved(volumes.channels))
    assert records == volumes.channels
    labels, scan, fa = records
    assert (labels.labels, labels.suffix) == ((3, 41, 1000), "dseg")
    assert labels.table == {"3": {"name": "cortex", "color": "#ff0000"}}
    assert (fa.low, fa.high, fa.unit, fa.ending) == (-1, 2, "mm", "desc-FA_dwimap")
    assert type(scan) is Channel
    # Nothing is where nothing was, also where the range begins below it.
    npt.assert_allclose(volumes.images[0, 0, 0, 0], [0, 0, 0, 0, 1 / 3], atol=1e-6)
    table = "index\tname\tcolor\n3\tcortex\t#ff0000\n41\tn/a\tn/a\n"
    assert labels.texts()[".tsv"].startswith(table)


def test_as_channels_gives_entities_the_kind_of_their_suffix(tmp_path, load, anatomy):
    for end in ("desc-aseg_dseg", "label-GM_probseg"):
        put(tmp_path, "sub-1", end, (anatomy > 0).astype("uint8"))
    names = ["desc-aseg", "label-GM"]
    kinds = [channel.kind for channel in load(tmp_path, channels=names).channels]
    assert kinds == ["labels", "map"]
    plain = load(tmp_path, channels=["desc-aseg=intensity"])
    assert type(plain.channels[0]) is Channel


def test_load_volumes_groups_channels_by_other_names(bids, load, tmp_path):
    names = ["T1w", "dseg", "desc-FA"]
    images = load(bids, channels=names).images
    samples, dti = tmp_path / "made", tmp_path / "dti"
    samples.mkdir()
    for file in bids.glob("**/*.nii.gz"):
        shutil.copy(file, samples / file.name.replace("sub-0", "sample-"))
    npt.assert_array_equal(load(samples, channels=names).images, images)
    for subject in ("sub-01", "sub-03"):
        (dti / subject).mkdir(parents=True)
        scan = bids / subject / "anat" / f"{subject}_desc-FA_dwimap.nii.gz"
        shutil.copy(scan, dti / subject / "fa.nii.gz")
    volumes = load(dti, channels=["fa"])
    assert (volumes.channels, volumes.subjects) == ((Map("fa"),), ["sub-01", "sub-03"])
    file = shutil.copy(scan, tmp_path / "fa.nii.gz")
    with pytest.raises(InputError, match="fa.nii.gz has no sub- in its name"):
        load(file, channels=["fa"])


def test_label_tables_are_those_of_their_segmentations(bids, load, anatomy):
    text = (bids / "dseg.tsv").read_text()
    (bids / "desc-aseg_dseg.tsv").write_text(text.replace("cortex", "other"))
    put(bids, "sub-01", "desc-aseg_dseg", anatomy)
    for desc, name, of_names in (
        ("", "dseg", "cortex"),
        ("aseg", "desc-aseg", "other"),
    ):
        (labels,) = load(bids, channels=[name], filter={"desc": desc}).channels
        assert labels.table["3"]["name"] == of_names
    (bids / "dseg.tsv").unlink()
    assert not load(bids, channels=["dseg"], filter={"desc": ""}).channels[0].table


def test_label_tables_of_all_files_are_joined(bids, load):
    (bids / "dseg.tsv").unlink()
    texts = {
        "sub-01": "index\tname\n3\tGM\n41\tn/a\n",
        "sub-03": "color\tname\tindex\n#ff0000\tGM\t3\n#00ff00\tWM\t41\n",
    }
    for subject, text in texts.items():
        (bids / subject / "anat" / f"{subject}_dseg.tsv").write_text(text)
    (labels,) = load(bids, channels=["dseg"]).channels
    assert labels._titles() == ["3 (GM)", "41 (WM)", "1000"]
    assert labels.table["3"] == {"name": "GM", "color": "#ff0000"}
    (bids / "sub-01/anat/sub-01_dseg.tsv").write_text("index\tname\n41\tGM\n")
    with pytest.raises(InputError, match="41 is GM in .*01_dseg.tsv, and WM in .*03_d"):
        load(bids, channels=["dseg"])


def test_labels_take_the_largest_part_of_a_coarser_voxel(tmp_path, load):
    fine = np.zeros((8, 8, 8), "uint8")
    # Of each voxel of twice the side, more than half is 2, and the nearest may be 5.
    fine[2:6, 2:6, 2:6] = 2
    fine[2:6:2, 2:6:2, 2:6:2] = 5
    file = put(tmp_path, "sub-1", "dseg", fine, np.diag([2.0, 2, 2, 1]))
    volumes = load(file, channels=["dseg"], voxel_size=4)
    labels = volumes.channels[0].to_values(volumes.images)
    assert np.unique(labels).tolist() == [0, 2]
    assert (labels == 2).sum() == 8


@pytest.mark.parametrize("end", ["dseg", "desc-FA_dwimap"])
def test_segmentations_and_maps_may_be_empty_but_not_elsewhere(
    bids, load, anatomy, end
):
    names = ["T1w", end.partition("_")[0]]
    put(bids, "sub-03", end, 0 * anatomy)
    images = load(bids, channels=names).images
    npt.assert_array_equal(images[..., 1:].any((1, 2, 3, 4)), [True, True, False])
    elsewhere = AFFINE.copy()
    elsewhere[0, 3] = 500
    put(bids, "sub-03", end, anatomy if end == "dseg" else anatomy / 1000, elsewhere)
    with pytest.raises(InputError, match=f"sub-03_{end}.* are in different spaces"):
        load(bids, channels=names, shape=SHAPE)


def test_labels_harden_to_those_of_files(rng):
    images = rng.normal(0.3, 0.5, (50, 2)).astype("float32")
    labels = Labels("dseg", labels=(17, 53))
    assert {*labels.to_values(images)} == {0, 17, 53}
    hard = labels.harden(images)
    npt.assert_array_equal(labels.to_values(hard), labels.to_values(images))
    npt.assert_array_equal(labels.harden(hard), hard)
    assert labels.picture(images).shape == (50, 3)
    assert (labels.dtype, Labels("x", labels=[70000]).dtype) == ("int16", "int32")


def test_deviations_are_in_units_of_the_file(rng):
    data = rng.uniform(100, 900, (*SHAPE, 1)).astype("float32")
    channel, repeated = Unnamed(), rng.uniform(0.2, 0.8, (3, *SHAPE, 1))
    _, origin = channel.conform("T1w.nii.gz", data, AFFINE, Grid(SHAPE, AFFINE))
    values = [channel.bring_back(images, origin) for images in repeated]
    deviations = channel.spread(repeated, origin)
    npt.assert_allclose(deviations, np.std(values, 0, ddof=1), rtol=1e-4)


def test_maps_stay_in_their_range():
    md = Map("MD", low=0.0001, high=0.003, background=0.0001)
    low, high = md.to_values(np.array([[0.0], [1.0]], "float32"))
    assert np.float32(0.0001) <= low and high <= np.float32(0.003)


def test_labels_measure_volumes_and_overlap_by_name():
    table = {"3": {"name": "cortex"}}
    labels = Labels("dseg", labels=(3, 41, 50), table=table)
    numbers = np.array([[0, 1, 1, 2], [1, 1, 0, 0]])
    one, other = (labels._one_hot(row[:, None, None]) for row in numbers)
    measured = labels.measure(one, 0.5)
    assert measured == {"3 (cortex), ml": 1.0, "41, ml": 0.5, "50, ml": 0.0}
    overlap = labels.compare(one, other)
    assert overlap["3 (cortex), Dice"] == 0.5
    assert overlap["41, Dice"] == 0
    assert np.isnan(overlap["50, Dice"])  # which neither has
    columns = {title: np.array([value] * 30) for title, value in measured.items()}
    columns["41, ml"][1:] = 0
    odd = ["41 is in 1 of 30 volumes", "50 is in 0 of 30 volumes"]
    assert labels.find_odd(columns, range(30)) == odd


def test_maps_measure_the_mean_outside_the_background():
    md = Map("MD", high=0.004, unit="mm^2/s")
    # A decoder leaves a little in the background.
    image = np.array([0, 1e-4, 0.25, 0.75], "float32")[:, None, None, None]
    assert md.measure(image, 1.0) == {"mean, mm^2/s": pytest.approx(0.002)}


@pytest.mark.parametrize(
    ("low", "means", "odd"),
    [
        (0.0, [2, 2.2, 1.9, 0.002], ["d has a mean of 0.002, the median is 1.95"]),
        (100.0, [1200, 1250, 1230, 260], ["d has a mean of 260, the median is 1215"]),
        # Of both signs, means are near to 0 or not, whatever the scale.
        (-1.0, [0.002, -0.003, 0.15], []),
        (
            0.0,
            [0, 2, 0, 0],
            ["3 of 4 volumes use almost nothing of the range 0 to 5000"],
        ),
    ],
)
def test_maps_of_another_scale_are_odd(low, means, odd):
    values = Map("T1map", low=low, high=5000.0, background=max(low, 0.0))
    assert values.find_odd({"mean": np.array(means)}, "abcd") == odd


def test_choose_channels_by_name():
    channels = as_channels(["T1w", "dseg"])
    for one in ("dseg", ["dseg"]):
        assert choose_channels(one, channels) == channels[1:]
    for every in (None, True):
        assert choose_channels(every, channels) == channels
    with pytest.raises(InputError, match="channels have no names; leave out"):
        choose_channels(["T1w"], [Unnamed()])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["T1w", "T1w"], "T1w is repeated; name it once"),
        (["T1w", "T9w"], r"no file has the suffix T9w; there are .*T1w \(3\)"),
        (["T1w", "desc-MD"], "no file has the desc MD; there are .*FA"),
        (["T1w=thing"], "unknown kind of channel 'thing'; choose one of intensity"),
        (["T1w="], "unknown kind of channel ''; choose one of intensity"),
        (["T1w=0:x"], "the range of a map must be two numbers, as in T1w=0:1"),
        (["T1w=1:0"], "the range of T1w must be two numbers, the lower first"),
        (["T1w=labels"], "fractional values.*or name T1w=intensity in a training"),
        (["T2w=0:1"], r"name T2w=0:2000\."),
        (["desc-FA=0:0.1:u"], r"name desc-FA=0:0\.9\d*:UNIT\."),
        (["desc-FA=0:0.1", "T2w=0:3"], "(?s)outside of the range of desc-FA, 0 to 0.1"),
    ],
)
def test_load_volumes_refuses_wrong_channels(bids, load, names, message):
    with pytest.raises(InputError, match=message):
        load(bids, channels=names)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_load_volumes_reports_all_bad_files_of_channels(bids, load, anatomy):
    put(bids, "sub-01", "T1w", np.float32(anatomy) / (anatomy > 0))
    put(bids, "sub-01", "dseg", anatomy * 0.5)
    put(bids, "sub-03", "desc-FA_dwimap", (2.5 * (anatomy > 0)).astype("float32"))
    with pytest.raises(InputError) as error:
        load(bids, channels=["T1w", "dseg", "desc-FA"])
    scan, first, second, cure = str(error.value).splitlines()
    assert "sub-01_T1w.nii.gz has NaN" in scan
    assert "sub-01_dseg.nii.gz has fractional values" in first
    assert "sub-03_desc-FA_dwimap.nii.gz has values from 0 to 2.5, outside" in second
    assert "or, in a training, name desc-FA=0:2.5." in second
    assert "Add `skip_bad`" in cure
    assert len(load(bids, channels=["T1w", "dseg"], skip_bad=True).images) == 2


def test_load_volumes_reads_channels_again_after_an_error_of_the_disk(
    bids, load, monkeypatch
):
    with disk_error(monkeypatch, "sub-01_T1w.nii.gz"):
        assert len(load(bids, channels=["T1w", "dseg"], skip_bad=True).images) == 2
    assert len(load(bids, channels=["T1w", "dseg"], skip_bad=True).images) == 3


def test_load_volumes_counts_complete_subjects_and_not_files(bids, load, anatomy):
    put(bids, "sub-01", "T1w", np.stack([anatomy] * 2, -1))
    # Channels along an axis of these files are no option.
    with pytest.raises(InputError, match=r"; give one of them\.\nAdd .* \(1 good\)"):
        load(bids, channels=["T1w", "T2w", "dseg"])
    put(bids, "sub-01", "run-2_T1w", anatomy)
    with pytest.raises(InputError, match="both the T1w of one subject.* `filter`"):
        load(bids, channels=["T1w", "dseg"])
    for file in bids.glob("**/*_T2w.nii.gz"):
        file.rename(file.with_name(f"sub-9{file.name[5:]}"))
    with pytest.raises(InputError, match=r"0 of \d .* sub-01 \(no T2w\).* missing\."):
        load(bids, channels=["dseg", "T2w"])


def test_labels_refuse_unknown_ones(bids):
    file = bids / "sub-01" / "anat" / "sub-01_dseg.nii.gz"
    with pytest.raises(InputError, match="label 1000; replace it by one of 0, 3, 41"):
        Labels("x", labels=(3, 41)).load(file)


def test_labels_that_are_nearly_whole_are_rounded(tmp_path, anatomy):
    file = put(tmp_path, "sub-1", "dseg", (anatomy + 5e-4).astype("float32"))
    labels = Labels("dseg").learn([file])
    npt.assert_array_equal(labels.load(file)[0][..., 0], anatomy)


def test_labels_learn_refuses_many_and_names_the_files_with_most(tmp_path, anatomy):
    many = np.arange(504, dtype="int16").reshape(SHAPE)
    files = [put(tmp_path, f"sub-{n}", "dseg", anatomy) for n in range(4)]
    files[2] = put(tmp_path, "sub-2", "dseg", many)
    with pytest.raises(
        InputError, match=f"504 labels .* 1 to {MAX_LABELS}; merge"
    ) as e:
        Labels("dseg").learn(files)
    assert f"(503 in {files[2]}, 3 in {files[0]}, 3 in" in str(e.value)
    with pytest.raises(InputError, match=r"x has 99 labels beside 0, and must have 1"):
        Labels("x", labels=range(1, 100)).learn(files)
    empty = put(tmp_path, "sub-9", "dseg", 0 * anatomy)
    with pytest.raises(InputError, match=f"has 0 labels beside 0 .0 in {empty}., and"):
        Labels("dseg").learn([empty])


@pytest.mark.parametrize(
    "saved",
    [
        [{"kind": "dwi", "name": "x"}],
        [{"name": "x"}],
        [{"kind": "map", "name": "x", "low": "a"}],
        [{"kind": "intensity", "name": "x", "more": 1}],
        [{"kind": "labels", "name": "x", "labels": [0.5]}],
        [{"kind": "labels", "name": "x", "labels": 3}],
        [{"kind": "labels", "name": "x", "table": {"3": "cortex"}}],
        [3],
    ],
)
def test_from_saved_refuses_damaged_records(saved):
    with pytest.raises(InputError):
        from_saved(saved)


def test_maps_refuse_wrong_ranges():
    floats = Map("x", low=np.float32(0.25), high=np.float32(2), background=1)
    assert floats.sidecar_entries()["Range"] == [0.25, 2.0]
    with pytest.raises(InputError, match="the `background` of x must lie in its range"):
        Map("x", low=0.1)
    with pytest.raises(InputError, match="must be two numbers, the lower first"):
        Map("x", high="a")


def test_maps_name_a_range_that_holds_the_values(tmp_path):
    file = put(tmp_path, "sub-1", "x", np.linspace(0, 1.2349, 504).reshape(SHAPE))
    with pytest.raises(InputError, match=r"name x=0:1\.235\."):
        Map("x").load(file)
    Map("x", high=1.235).load(file)


def test_maps_in_a_far_smaller_unit_cause_a_warning(bids, load, anatomy, caplog):
    for subject in ("sub-01", "sub-03"):
        put(bids, subject, "desc-FA_dwimap", np.float32(1e-9 * (anatomy > 0)))
    put(bids, "sub-02_ses-1", "desc-FA_dwimap", 0 * anatomy)  # but not empty ones
    load(bids, channels=["desc-FA"])
    (text,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "sub-01_desc-FA_dwimap.nii.gz has values within 1e-09 of" in text
    assert "(0), almost nothing of the range of desc-FA, 0 to 1 (another unit?)" in text
    assert "The same holds for 1 more: " in text and "sub-03_desc-FA" in text


def test_as_channels_gives_usual_names_their_kinds():
    units = [as_channels(f"MD={x}")[0].unit for x in ("0:0.003", "0:3", "0:3:u", "map")]
    assert units == ["mm^2/s", "", "u", "mm^2/s"]
    assert as_channels("MD=map") == as_channels("MD")
    assert as_channels("T1w") == (Channel("T1w"),)
    kinds = [channel.kind for channel in as_channels(["T1w", "dseg", "param-MD", "fa"])]
    assert kinds == ["intensity", "labels", "map", "map"]


def test_check_same_compares_kinds_labels_and_ranges():
    t1, t2, fa, wide = map(as_channels, ("T1w", "T2w", "FA", "FA=0:2"))
    labels = (Labels("dseg", labels=(1, 2), table={"1": {"name": "CSF"}}),)
    for pair in ((labels, labels), (t1, ()), ((), (*t1, *t2)), ((), ())):
        check_same(*pair)
    for pair in ((labels, ()), ((), fa), (t1, t2), (t1, labels)):
        with pytest.raises(InputError, match="have other channels, labels or ranges"):
            check_same(*pair)
    with pytest.raises(InputError, match=r"FA, map, .0.0, 2.0.\) .*p, .0.0, 1.0.\)"):
        check_same(wide, fa)
    check_same_sources(t1, (), "`init`")
    with pytest.raises(InputError, match=r"T1w, .* than those of `init` \(T2w, "):
        check_same_sources((*t1, *t2), (*t2, *t1), "`init`")
