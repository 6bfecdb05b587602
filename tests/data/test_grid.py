"""Grids: voxels keep their positions in every orientation, forth and back."""

from itertools import permutations, product

import numpy as np
import numpy.testing as npt
import pytest
from scans import places
from scipy.spatial.transform import Rotation
from scipy.stats import norm

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid, choose_grid, conform, restore, same_grid
from dipy_ldm.data._nifti import VolumeInfo


def affine_of(shape, sizes, rotation=None, order=(0, 1, 2), flips=(1, 1, 1)):
    """Place a volume around a point near the origin."""
    linear = np.eye(3)[:, order] * np.array(flips) * np.array(sizes)
    if rotation is not None:
        linear = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix() @ linear
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = [3.3, -7.1, 12.4] - linear @ (np.array(shape) - 1) / 2
    return affine


def info_of(shape, affine, name="a.nii"):
    return VolumeInfo(name, tuple(shape), 1, affine, True)


def centroid(data, affine):
    weights = np.where(data > 0.1 * data.max(), data, 0)
    return (places(data.shape[:3], affine) * weights).sum((0, 1, 2)) / weights.sum()


RNG = np.random.default_rng(0)
ORDERS = list(permutations(range(3)))
# Twelve ways to lie: axis orders, flips, voxel sizes; half of them oblique.
POSES = [
    {
        "sizes": RNG.uniform(0.8, 3.5, 3),
        "order": ORDERS[i % 6],
        "flips": RNG.choice([-1, 1], 3),
        "rotation": RNG.uniform(-40, 40, 3) if i >= 6 else None,
    }
    for i in range(12)
]


@pytest.mark.parametrize("pose", POSES, ids=range(12))
def test_conform_and_restore_keep_a_landmark_in_its_place(pose):
    shape = tuple(np.ceil(80 / pose["sizes"]).astype(int))
    affine = affine_of(shape, **pose)
    landmark = np.array([5.0, -9, 10])
    squared = np.sum((places(shape, affine) - landmark) ** 2, -1)
    data = (200 * np.exp(-squared / 50)).astype("int16")[..., None]
    centre = centroid(data, affine)
    npt.assert_allclose(centre, landmark, atol=0.5 * min(pose["sizes"]))
    infos = [info_of(shape, affine), info_of((40,) * 3, affine_of((40,) * 3, (2,) * 3))]
    for options in ({}, {"voxel_size": 2, "shape": 36}, {"voxel_size": 4}):
        grid = choose_grid(infos, **options)
        size = grid.affine[0, 0]
        conformed = conform(data, affine, grid)
        npt.assert_allclose(centroid(conformed, grid.affine), centre, atol=0.1 * size)
        restored = restore(conformed, grid, Grid(shape, affine), data)
        assert restored.shape == data.shape
        npt.assert_allclose(centroid(restored, affine), centre, atol=0.1 * size)


@pytest.mark.parametrize("pose", POSES[::3], ids=range(4))
def test_conform_keeps_ramps_and_does_not_overshoot(pose):
    shape = np.ceil(70 / pose["sizes"]).astype(int)
    affine = affine_of(shape, **pose)
    ramps = places(shape, affine).astype("float32")
    grid = choose_grid([info_of(shape, affine)], voxel_size=(1.7, 2, 2.9))
    expected = places(grid.shape, grid.affine)
    # Inside: as far from the file's edge as the filter reaches, and a voxel.
    index = expected @ np.linalg.inv(affine)[:3, :3].T + np.linalg.inv(affine)[:3, 3]
    reach = np.ceil(4 * 4 / pose["sizes"]) + 1
    inside = ((index >= reach) & (index <= shape - 1 - reach)).all(-1)
    assert inside.sum() > 300
    conformed = conform(ramps, affine, grid)
    npt.assert_allclose(conformed[inside], expected[inside], atol=1e-4)
    boxes = (np.indices(shape) // 5 % 2).all(0)[..., None].astype("float32")
    conformed = conform(boxes, affine, grid)
    assert conformed.min() == 0
    assert 0.5 < conformed.max() <= 1


@pytest.mark.parametrize("order", ORDERS)
def test_choose_grid_copies_every_voxel_by_default(order):
    shape = (20, 33, 17)
    affine = affine_of(shape, (1.1, 2.3, 0.937), order=order, flips=(-1, 1, -1))
    data = RNG.random((*shape, 1)).astype("float32")
    grid = choose_grid([info_of(shape, affine)])
    inverse = np.argsort(order)
    assert grid.shape == tuple(np.array(shape)[inverse])
    assert (np.diag(grid.affine) > 0).all()
    conformed = conform(data, affine, grid)
    turned = np.flip(data, (0, 2)).transpose(*inverse, 3)
    npt.assert_array_equal(conformed, turned)
    npt.assert_array_equal(restore(conformed, grid, Grid(shape, affine), 0), data)


def test_conform_to_the_same_grid_copies():
    affine = affine_of((9, 8, 7), (0.1, 0.3, 1.7))
    data = RNG.random((9, 8, 7, 2)).astype("float32")
    conformed = conform(data, affine, Grid((9, 8, 7), affine))
    npt.assert_array_equal(conformed, data)
    assert not np.shares_memory(conformed, data)
    # As a header in float32 has it.
    rounded = affine.astype("float32").astype(float)
    npt.assert_array_equal(conform(data, rounded, Grid((9, 8, 7), affine)), data)


def test_choose_grid_holds_the_edges_of_all_volumes():
    infos = [
        info_of((10, 12, 14), affine_of((10, 12, 14), (2, 2, 2))),
        info_of((30, 20, 10), affine_of((30, 20, 10), (1, 1, 1), (20, 10, 5))),
    ]
    grid = choose_grid(infos)
    npt.assert_allclose(np.diag(grid.affine)[:3], 1.5)
    low = grid.affine[:3, 3] - 0.75
    high = low + 1.5 * np.array(grid.shape)
    for info in infos:
        corners = np.array([*product(*((-0.5, n - 0.5) for n in info.shape))])
        corners = corners @ info.affine[:3, :3].T + info.affine[:3, 3]
        assert (corners >= low - 0.02).all()
        assert (corners <= high + 0.02).all()


@pytest.mark.parametrize("shape", [(24, 24, 24), (25, 16, 19), 8])
def test_choose_grid_of_a_shape_is_centred_and_copies_voxels(shape):
    own = (20, 21, 22)
    affine = affine_of(own, (2, 2, 2))
    data = RNG.random((*own, 1)).astype("float32")
    grid = choose_grid([info_of(own, affine)], shape=shape)
    full = np.broadcast_to(shape, 3)
    assert grid.shape == tuple(full)
    middle = grid.affine @ [*(full - 1) / 2, 1]
    npt.assert_array_less(abs(middle[:3] - [3.3, -7.1, 12.4]), 1.01)
    conformed = conform(data, affine, grid)
    # Cropped or padded: no voxel is a mixture.
    assert {*conformed.ravel()} <= {0, *data.ravel()}
    restored = restore(conformed, grid, Grid(own, affine), data)
    npt.assert_array_equal(restored, data)


def test_restore_keeps_the_values_of_the_file_off_the_grid():
    shape = (30, 30, 30)
    affine = affine_of(shape, (2, 2, 2), (10, 20, 30))
    grid = choose_grid([info_of(shape, affine)], voxel_size=3, shape=10)
    sevens, fives = np.full((*shape, 1), 7, "float32"), np.full((*grid.shape, 1), 5.0)
    restored = restore(fives, grid, Grid(shape, affine), sevens)
    assert (restored.min(), restored.max()) == (5, 7)
    # What the grid holds, less the voxels in which the two are blended.
    assert 0.6 < (restored == 5).sum() * 2**3 / 30**3 < 1


def test_conform_is_zero_outside_of_a_bright_volume():
    affine = affine_of((8, 8, 8), (1, 1, 1))
    bright = np.full((8, 8, 8, 1), 5.0, "float32")
    grid = choose_grid([info_of((8, 8, 8), affine)], 0.8, 30)
    conformed = conform(bright, affine, grid)
    assert (conformed.min(), conformed.max()) == (0, 5)


def test_conform_blurs_an_edge_by_the_width_of_coarse_voxels():
    # By a point spread function as wide as a voxel, at half of its height.
    size = 4.0
    shape, affine = (64, 9, 9), affine_of((64, 9, 9), (1, 1, 1))
    edge = np.zeros((*shape, 1), "float32")
    edge[32:] = 1
    grid = choose_grid([info_of(shape, affine)], (size, 1, 1), None)
    profile = conform(edge, affine, grid)[:, 4, 4, 0]
    at = places(grid.shape, grid.affine)[:, 4, 4, 0]
    middle = places(shape, affine)[31:33, 4, 4, 0].mean()
    sigma = np.sqrt((size**2 - 1) / (8 * np.log(2)))
    npt.assert_allclose(profile, norm.cdf(at, middle, sigma), atol=0.02)


def test_choose_grid_has_median_voxel_sizes_along_the_axes_of_the_body():
    infos = [
        info_of((9, 9, 9), affine_of((9, 9, 9), sizes, order=order, rotation=rotation))
        for sizes, order, rotation in [
            ((1, 2, 3), (0, 1, 2), None),
            ((3, 1, 2), (2, 0, 1), (9, 5, -12)),
            ((9, 9, 9), (0, 1, 2), None),
        ]
    ]
    npt.assert_allclose(np.diag(choose_grid(infos).affine)[:3], [1, 2, 3])


TRIPLE = "must be one positive number or three, not"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"voxel_size": 0}, f"voxel_size {TRIPLE} 0"),
        ({"voxel_size": (1, 2)}, f"voxel_size {TRIPLE} .1, 2"),
        ({"voxel_size": float("nan")}, f"voxel_size {TRIPLE} nan"),
        ({"voxel_size": float("inf")}, f"voxel_size {TRIPLE} inf"),
        ({"voxel_size": 1e9}, r"size 1000000000.0 exceeds the volumes \(9 x 9 x 9 mm"),
        ({"shape": (64, 64, -1)}, f"shape {TRIPLE} .64, 64, -1"),
        ({"shape": 6.5}, f"shape {TRIPLE} 6.5"),
    ],
)
def test_choose_grid_refuses_options_that_make_no_sense(options, sentence):
    with pytest.raises(InputError, match=sentence):
        choose_grid([info_of((9, 9, 9), np.eye(4))], **options)


def test_choose_grid_names_a_volume_far_off():
    far = np.eye(4)
    far[0, 3] = 1000
    infos = [info_of((9, 9, 9), np.eye(4), f"{i}.nii") for i in range(3)]
    infos.insert(1, info_of((9, 9, 9), far, "far.nii"))
    sentence = "1009 x 9 x 9 mm.*far.nii is farthest from the others"
    with pytest.raises(InputError, match=sentence):
        choose_grid(infos)
    assert choose_grid(infos, shape=8).shape == (8, 8, 8)


def test_same_grid_compares_places_of_voxels():
    affine = affine_of((50, 50, 50), (1, 1, 1), (1, 2, 3))
    moved, turned = affine.copy(), affine.copy()
    moved[:3, 3] += 0.01
    turned[:3, :3] *= 1.01
    grid = Grid((50, 50, 50), affine)
    assert same_grid(grid, Grid((50, 50, 50), moved))
    assert not same_grid(grid, Grid((50, 50, 50), turned))
    assert not same_grid(grid, Grid((50, 50, 49), affine))
