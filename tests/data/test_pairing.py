"""Sources and masks are paired with volumes, or refused."""

from itertools import chain, product
import json
from pathlib import Path

import numpy as np
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._nifti import VolumeInfo
from dipy_ldm.data._pairing import (
    group_channels,
    pair_masks,
    pair_sources,
    refuse_spaces,
)
from dipy_ldm.data._paths import stem

NAMES_OF_SAMPLES = {
    "T1w": "T2w_samples-000{}_T1w",
    "desc-MD": "desc-MD000{}_dwimap",
    "dseg": "desc-synthetic000{}_dseg",
}


def names(*stems):
    return [Path(f"{stem}.nii.gz") for stem in stems]


def test_pair_sources_by_subject_and_session_or_order():
    images = names("sub-1_ses-a_T2w", "sub-1_ses-b_T2w", "sub-2_ses-a_T2w")
    stems = ("sub-2_ses-a_T1w", "sub-1_ses-b_T1w", "sub-1_ses-a_T1w", "sub-3_T1w")
    for sources, order in (
        (names(*stems), (2, 1, 0)),
        (names("sub-2_T1w", "sub-1_T1w"), (1, 1, 0)),
        (names("sub-1_ses-a_T1w", "sub-1_T1w", "sub-2_T1w"), (0, 1, 2)),
        (plain_names := names("c", "a", "b"), (0, 1, 2)),
    ):
        pairs = pair_sources(images, sources)
        assert list(pairs.values()) == [sources[i] for i in order]
    with pytest.raises(InputError, match="there are 2 sources for 3 volumes"):
        pair_sources(images, plain_names[:2])
    with pytest.raises(InputError, match="there are 2 generated files for 3 volumes"):
        pair_sources(images, plain_names[:2], "generated file")


def test_the_folder_of_a_study_is_no_subject():
    study = Path("/data/sub-cortical")
    pairs = [[study / f"IXI{i}_{kind}.nii.gz" for kind in ("T1", "T2")] for i in (1, 2)]
    t1, t2 = map(list, zip(*pairs, strict=True))
    assert group_channels([*t1, *t2], ["T1", "T2"]) == pairs
    assert list(pair_sources(t2, t1).values()) == t1
    with pytest.raises(InputError, match="there are 3 masks for 2 volumes"):
        pair_masks(t2, [*t1, t2[0]])
    one = [Path(f"/data/sub-1/{kind}.nii.gz") for kind in ("T1", "T2")]
    assert group_channels(one, ["T1", "T2"]) == [one]


def test_group_channels_of_samples_by_sidecars(tmp_path):
    """Several of a source, as files with numbers and as those of BIDS, of two runs."""
    sets = []
    for run, subject, number in product("ab", (1, 2), (0, 1)):
        facts = {"GeneratedBy": {"Name": "dipy_ldm"}, "Sample": number}
        facts["Sources"] = [f"sub-{subject}_T1w.nii"]
        sets.append([])
        for name, end in NAMES_OF_SAMPLES.items():
            folder = tmp_path / run / ("dwi" if "MD" in name else "anat")
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"sub-{subject}_{end.format(number)}.nii.gz"
            text = json.dumps(facts | {"Channel": name})
            file.with_name(f"{stem(file)}.json").write_text(text)
            sets[-1].append(file)
    files = sorted(chain(*sets))
    names = [*NAMES_OF_SAMPLES]
    assert group_channels(files, names, generated=True) == sets


def test_group_channels_takes_those_of_one_space():
    native = names("sub-1_T1w", "sub-1_space-T1w_dseg")
    template = names("sub-1_space-MNI_T1w", "sub-1_space-MNI_dseg")
    kinds = ["T1w", "dseg"]
    assert group_channels(native, kinds) == [native]
    assert group_channels([native[0], *template], kinds) == [template]
    assert group_channels([*native, template[0]], kinds) == [native]
    both = [*native, *template]
    assert group_channels(both, kinds, all_spaces=True) == [native, template]
    with pytest.raises(InputError) as refused:
        group_channels(both, kinds)
    assert refused.value.files == (native[0], template[0])
    assert "`filter`" in refused.value.cure
    apart = [native[0], template[1]]
    with pytest.raises(
        InputError, match="in different spaces, by their names"
    ) as refused:
        group_channels(apart, kinds)
    assert refused.value.files == tuple(apart)
    # Another template is another space.
    other = names("sub-1_space-MNI_T1w", "sub-1_space-MNI152_dseg")
    with pytest.raises(InputError, match=r"names \(MNI and MNI152\)"):
        group_channels(other, kinds)


@pytest.mark.parametrize("pair", [pair_sources, pair_masks])
def test_pairs_are_in_one_space(pair):
    for stems in (
        "sub-1_T1w sub-1_space-MNI_T1w sub-1_mask sub-1_space-MNI_mask",
        "scan1 scan1_space-MNI scan1_mask scan1_space-MNI_mask",
    ):
        native, template, own, other = names(*stems.split())
        assert pair([native], [other, own]) == {native: own}
        assert pair([template], [own, other]) == {template: other}
        for file, partner in ((native, other), (template, own)):
            with pytest.raises(InputError, match="are in different spaces") as refused:
                pair([file], [partner])
            assert refused.value.files == (file, partner)
    with pytest.raises(InputError, match="are in different spaces"):
        pair(names("a", "b"), names("c", "space-MNI_d"))


def scan(affine, space=1, shape=(10, 10, 10), name="sub-1_T1w"):
    return VolumeInfo(*names(name), shape, 1, affine, True, space=space)


def test_refuse_spaces_by_headers():
    near, coarse, far = np.diag([2, 2, 2, 1]), np.diag([4, 4, 4, 1]), np.eye(4)
    far[:3, 3] = 100
    slab = scan(coarse, shape=(10, 10, 2))
    for others in ([slab], [scan(coarse, 2), scan(coarse)], [scan(near, 4)]):
        refuse_spaces([scan(near), *others])
    with pytest.raises(InputError, match="different spaces, by their headers"):
        refuse_spaces([scan(near), slab, scan(far, name="sub-1_T2w")])
    with pytest.raises(InputError, match="different spaces, by their headers"):
        refuse_spaces([scan(near), scan(coarse, 4)])
    # Names are more trustworthy than codes, which many programs don't set.
    name = "sub-1_space-MNI_T1w"
    refuse_spaces([scan(near, 1, name=name), scan(coarse, 4, name=name)])


def test_group_channels_refuses_files_of_one_name():
    twins = [Path(f"sub-1_T1w{end}") for end in (".nii", ".nii.gz")]
    with pytest.raises(InputError, match="differ only in their extensions; remove one"):
        group_channels(twins, ["T1w"])


@pytest.mark.parametrize(
    ("files", "partners"),
    [
        ("run-1_T1w run-2_T1w", "run-1_mask run-2_mask"),
        ("run-1_T1w run-2_T1w", "acq-hi_run-1_T2w run-2_T2w"),
        ("acq-a_run-1_T1w acq-a_run-2_T1w T1w", "run-1_T2w run-2_T2w T2w"),
    ],
)
@pytest.mark.parametrize("pair", [pair_sources, pair_masks])
def test_pairs_share_entities(pair, files, partners):
    files, partners = (
        names(*(f"sub-1_{name}" for name in text.split())) for text in (files, partners)
    )
    assert list(pair(files, partners[::-1]).values()) == partners


@pytest.mark.parametrize("twins", ["run-1_T2w run-1_FLAIR", "acq-a_T2w T2w"])
def test_pair_sources_refuses_those_that_fit_alike(twins):
    sources = names(*(f"sub-1_{name}" for name in twins.split()))
    with pytest.raises(InputError, match="has 2 sources of its subject and sess"):
        pair_sources(names("sub-1_run-1_acq-b_T1w"), sources)


@pytest.mark.parametrize("pair", [pair_sources, pair_masks])
def test_pairs_by_names_and_their_numbers(pair):
    for stems in (("p1", "p10", "p2"), ("S1", "S1A", "S1-2"), ("S1A", "S1_T1", "S1")):
        files, partners = names(*stems), names(*(f"x_{stem}_mask" for stem in stems))
        all_partners = [*sorted(partners), *names("S12_mask")]
        assert list(pair(files, all_partners).values()) == partners
    files = names("p1_T1", "p10_T1", "p2_T1")
    with pytest.raises(InputError, match="order of their volumes, by the numbers or"):
        pair(files, names("p10_x", "p1_x", "p2_x"))
    for stems in (("p01", "p10", "p2"), ("v5", "v5", "v5"), ("a3", "a1", "a4")):
        assert list(pair(files, names(*stems)).values()) == names(*stems)
    folders = [Path(f"p{number}/T1.nii.gz") for number in (1, 10, 2)]
    with pytest.raises(InputError, match="by the numbers or BIDS entities in their"):
        pair(folders, names("p10_x", "p1_x", "p2_x"))


@pytest.mark.parametrize("pair", [pair_sources, pair_masks])
@pytest.mark.parametrize(
    ("files", "partners"),
    [
        ("scan1 scan10 scan2", "scan10_mask scan1_mask scan3_mask"),
        ("anna bert", "bert_mask carl_mask"),
        ("scan1 scan2", "scan1_mask scan3_mask"),
    ],
)
def test_pairs_of_other_names_are_refused(pair, files, partners):
    with pytest.raises(InputError, match="order, but not by their names; give one for"):
        pair(names(*files.split()), names(*partners.split()))


@pytest.mark.parametrize("pair", [pair_sources, pair_masks])
@pytest.mark.parametrize(
    ("files", "partners"),
    [
        ("p1_site1 p2_site1 p3_site2 p4_site2", "p1_rater1 p2_rater2 p3_rater1 p4_r2"),
        ("p01_3T p02_7T p03_3T", "p01_seg7 p02_seg3 p03_seg3"),
        ("batch1/c1 batch1/c2 batch2/c3", "r1/c1_mask r2/c2_mask r1/c3_mask"),
        ("sub-1_acq-1_T1w sub-2_acq-2_T1w", "sub-1_desc-r2_mask sub-2_desc-r1_mask"),
        ("p1 p0", "image-0/scan image-1/scan"),  # images in memory
        ("p1/T1 p2/T1", "T1_mask lesion"),
        ("T1 T2", "T1_to_T2 lesion"),
    ],
)
def test_pairs_by_order(pair, files, partners):
    files, partners = names(*files.split()), names(*partners.split())
    assert list(pair(files, partners).values()) == partners


def test_pair_sources_refuses_other_subjects():
    volumes = names("sub-1_T1w", "sub-2_T1w", "template")
    sources = names("MNI", "sub-1_T2w", "sub-2_T2w")
    with pytest.raises(InputError, match="sub-2_T1w.nii.gz would have the source sub"):
        pair_sources(volumes, sources)


def test_pair_masks_by_order_unless_names_tell_otherwise(caplog):
    images = names("sub-1_ses-a_T2w", "sub-1_ses-b_T2w", "sub-2_T2w")
    masks = names("sub-1_ses-a_mask", "sub-1_ses-b_mask", "sub-2_mask")
    for candidates in (masks, masks[::-1], [*masks, *names("sub-3_mask")]):
        with caplog.at_level("INFO"):
            assert list(pair_masks(images, candidates).values()) == masks
    assert "sub-1_ses-a_T2w.nii.gz with sub-1_ses-a_mask.nii.gz; sub-1" in caplog.text
    assert "1 masks belong to no volume" in caplog.text
    # Two scans of a subject, each with a mask of its own.
    images, masks = names("sub-1_T1w", "sub-1_T2w"), names("sub-1_a", "sub-1_b")
    assert list(pair_masks(images, masks).values()) == masks
    plain_names = names("c", "a")
    assert list(pair_masks(images, plain_names).values()) == plain_names
    # One mask of a head, for all scans of it.
    one = names("sub-1_mask") * 2
    assert list(pair_masks(images, one).values()) == one


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (["sub-2_mask", "other"], "T2w.nii.gz would have the mask sub-2"),
        (["sub-2_mask", "sub-3_mask"], "1 of 2 volumes have no mask of their subject"),
        (["sub-2_a", "sub-2_b", "sub-1_a"], "has 2 masks of its subject and session"),
        (["sub-1_mask"] * 2, "1 of 2 volumes have no mask of their subject"),
        (["a", "b", "c"], "3 masks for 2 volumes, .* the volume .scan1, scan1_mask"),
        (["run-2_mask", "run-1_mask"], "not in the order of their volumes, by the"),
        (["mask", "ce-gad_mask"], "not in the order of their volumes, by the"),
    ],
)
def test_pair_masks_refuses_other_subjects(masks, sentence):
    with pytest.raises(InputError, match=sentence):
        pair_masks(names("sub-1_run-1_ce-gad_T2w", "sub-2_run-2_T2w"), names(*masks))
