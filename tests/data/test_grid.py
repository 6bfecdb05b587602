"""Grids: places survive, in every orientation, there and back."""

from itertools import permutations

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


def blob(shape, affine, centre, width=5):
    squared = np.sum((places(shape, affine) - centre) ** 2, -1)
    return np.exp(-squared / (2 * width**2)).astype("float32")[..., None]


def centroid(data, affine):
    weights = np.where(data > 0.1 * data.max(), data, 0)
    return (places(data.shape[:3], affine) * weights).sum((0, 1, 2)) / weights.sum()


RNG = np.random.default_rng(0)
ORDERS = list(permutations(range(3)))
# Twenty ways to lie: axis orders, flips, voxel sizes; from the tenth on oblique.
POSES = [
    {
        "sizes": RNG.uniform(0.8, 3.5, 3),
        "order": ORDERS[i % 6],
        "flips": RNG.choice([-1, 1], 3),
        "rotation": RNG.uniform(-40, 40, 3) if i >= 10 else None,
    }
    for i in range(20)
]
DTYPES = ["uint8", "int16", ">i2", "float32", "float64"]


@pytest.mark.parametrize("number", range(20))
def test_a_landmark_stays_within_half_a_voxel(number):
    pose = POSES[number]
    shape = np.ceil(80 / pose["sizes"]).astype(int)
    affine = affine_of(shape, **pose)
    landmark = np.array([5.0, -9, 10])
    data = (200 * blob(shape, affine, landmark)).astype(DTYPES[number % 5])
    other = affine_of((40, 40, 40), (2, 2, 2))
    infos = [info_of(shape, affine), info_of((40, 40, 40), other)]
    for grid in (
        choose_grid(infos),
        choose_grid(infos, voxel_size=2, shape=36),
        choose_grid(infos, voxel_size=4),
    ):
        conformed = conform(data, affine, grid)
        size = grid.affine[0, 0]
        # The blob comes on whichever grid to where it was in the file.
        there = centroid(data, affine)
        npt.assert_allclose(there, landmark, atol=0.5 * min(pose["sizes"]))
        npt.assert_allclose(centroid(conformed, grid.affine), there, atol=0.1 * size)
        back = restore(conformed, grid, Grid(tuple(shape), affine), data)
        assert back.shape == data.shape
        npt.assert_allclose(centroid(back, affine), there, atol=0.1 * size)


@pytest.mark.parametrize("number", range(0, 20, 3))
def test_ramps_are_exact_inside_and_nothing_overshoots(number):
    pose = POSES[number]
    shape = np.ceil(70 / pose["sizes"]).astype(int)
    affine = affine_of(shape, **pose)
    world = places(shape, affine).astype("float32")
    grid = choose_grid([info_of(shape, affine)], voxel_size=(1.7, 2, 2.9))
    conformed = conform(world, affine, grid)
    wanted = places(grid.shape, grid.affine)
    # Inside: as far from the file's edge as the filter reaches, and a voxel.
    index = wanted @ np.linalg.inv(affine)[:3, :3].T + np.linalg.inv(affine)[:3, 3]
    reach = np.ceil(4 * 4 / pose["sizes"]) + 1
    inside = ((index >= reach) & (index <= shape - 1 - reach)).all(-1)
    assert inside.sum() > 300
    npt.assert_allclose(conformed[inside], wanted[inside], atol=1e-4)
    boxes = (np.indices(shape) // 5 % 2).all(0)[..., None].astype("float32")
    conformed = conform(boxes, affine, grid)
    assert conformed.min() == 0
    assert 0.5 < conformed.max() <= 1


@pytest.mark.parametrize("shape", [(91, 109, 91), (65, 33, 17)])
@pytest.mark.parametrize("order", ORDERS)
def test_the_default_grid_holds_every_voxel_and_copies_it(shape, order):
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


def test_the_same_grid_is_a_copy():
    affine = affine_of((9, 8, 7), (0.1, 0.3, 1.7))
    data = RNG.random((9, 8, 7, 2)).astype("float32")
    conformed = conform(data, affine, Grid((9, 8, 7), affine))
    npt.assert_array_equal(conformed, data)
    assert not np.shares_memory(conformed, data)
    # As a header in float32 has it.
    rounded = affine.astype("float32").astype(float)
    npt.assert_array_equal(conform(data, rounded, Grid((9, 8, 7), affine)), data)


def test_the_grid_holds_the_edges_of_all_volumes():
    infos = [
        info_of((10, 12, 14), affine_of((10, 12, 14), (2, 2, 2))),
        info_of((30, 20, 10), affine_of((30, 20, 10), (1, 1, 1), (20, 10, 5))),
    ]
    grid = choose_grid(infos)
    npt.assert_allclose(np.diag(grid.affine)[:3], 1.5)
    lowest = grid.affine[:3, 3] - 0.75
    highest = lowest + 1.5 * np.array(grid.shape)
    for shape, affine in ((info.shape, info.affine) for info in infos):
        corners = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in shape)))
        world = corners.reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
        assert (world >= lowest - 0.02).all()
        assert (world <= highest + 0.02).all()


def test_requested_shape_is_centred_and_keeps_voxels_in_place():
    shape = (20, 21, 22)
    affine = affine_of(shape, (2, 2, 2))
    data = RNG.random((*shape, 1)).astype("float32")
    for wanted in ((24, 24, 24), (25, 16, 19), 8):
        grid = choose_grid([info_of(shape, affine)], shape=wanted)
        full = np.broadcast_to(wanted, 3)
        assert grid.shape == tuple(full)
        middle = grid.affine @ [*(full - 1) / 2, 1]
        npt.assert_array_less(abs(middle[:3] - [3.3, -7.1, 12.4]), 1.01)
        conformed = conform(data, affine, grid)
        # Cropped or padded: no voxel is a mixture.
        assert set(conformed.ravel()) <= {0, *data.ravel()}
        back = restore(conformed, grid, Grid(shape, affine), data)
        npt.assert_array_equal(back, data)


def test_outside_of_the_grid_are_the_values_of_the_file():
    shape = (30, 30, 30)
    affine = affine_of(shape, (2, 2, 2), (10, 20, 30))
    grid = choose_grid([info_of(shape, affine)], voxel_size=3, shape=10)
    own = np.full((*shape, 1), 7, "float32")
    fives = np.full((10, 10, 10, 1), 5, "float32")
    back = restore(fives, grid, Grid(shape, affine), own)
    assert (back.min(), back.max()) == (5, 7)
    # What the grid holds, less the voxels in which the two are blended.
    assert 0.6 < (back == 5).sum() * 2**3 / 30**3 < 1


def test_fine_patterns_are_filtered_before_they_alias():
    shape = (60, 60, 60)
    affine = affine_of(shape, (1, 1, 1))
    stripes = (np.indices(shape)[0] % 2).astype("float32")[..., None]
    # Every third voxel is on a dark and a bright stripe in turn.
    grid = choose_grid([info_of(shape, affine)], voxel_size=3)
    middle = conform(stripes, affine, grid)[2:-2, 2:-2, 2:-2]
    npt.assert_allclose(middle, 0.5, atol=0.01)


def test_conform_is_zero_outside_of_a_bright_volume():
    affine = affine_of((8, 8, 8), (1, 1, 1))
    bright = np.full((8, 8, 8, 1), 5.0, "float32")
    grid = choose_grid([info_of((8, 8, 8), affine)], 0.8, 30)
    conformed = conform(bright, affine, grid)
    assert (conformed.min(), conformed.max()) == (0, 5)


def test_conform_blurs_an_edge_by_the_width_of_coarse_voxels():
    size = 4.0
    # A point spread function as wide as a voxel, at half of its height.
    shape, affine = (64, 9, 9), affine_of((64, 9, 9), (1, 1, 1))
    edge = np.zeros((*shape, 1), "float32")
    edge[32:] = 1
    grid = choose_grid([info_of(shape, affine)], (size, 1, 1), None)
    profile = conform(edge, affine, grid)[:, 4, 4, 0]
    at = places(grid.shape, grid.affine)[:, 4, 4, 0]
    middle = places(shape, affine)[31:33, 4, 4, 0].mean()
    sigma = np.sqrt((size**2 - 1) / (8 * np.log(2)))
    npt.assert_allclose(profile, norm.cdf(at, middle, sigma), atol=0.02)


def test_edges_are_not_darkened():
    shape = (24, 20, 16)
    affine = affine_of(shape, (1, 1, 1))
    grid = choose_grid([info_of(shape, affine)], voxel_size=4)
    ones = np.ones((*shape, 1), "float32")
    npt.assert_allclose(conform(ones, affine, grid), 1, atol=1e-6)


def test_voxel_sizes_are_the_median_along_the_axes_of_the_body():
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


def test_a_volume_far_off_is_named():
    far = np.eye(4)
    far[0, 3] = 1000
    infos = [info_of((9, 9, 9), np.eye(4), f"{i}.nii") for i in range(3)]
    infos.insert(1, info_of((9, 9, 9), far, "far.nii"))
    sentence = "1009 x 9 x 9 mm.*far.nii is farthest from the others"
    with pytest.raises(InputError, match=sentence):
        choose_grid(infos)
    assert choose_grid(infos, shape=8).shape == (8, 8, 8)


def test_grids_are_compared_by_where_their_voxels_are():
    affine = affine_of((50, 50, 50), (1, 1, 1), (1, 2, 3))
    moved, turned = affine.copy(), affine.copy()
    moved[:3, 3] += 0.01
    turned[:3, :3] *= 1.01
    grid = Grid((50, 50, 50), affine)
    assert same_grid(grid, Grid((50, 50, 50), moved))
    assert not same_grid(grid, Grid((50, 50, 50), turned))
    assert not same_grid(grid, Grid((50, 50, 49), affine))
