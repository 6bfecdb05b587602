"""Pictures: the positions of pixels."""

from types import SimpleNamespace
from unittest import mock

from PIL import Image
from matplotlib.figure import Figure
import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import VQVAE, _pictures, plots
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data.channels import as_channels
from dipy_ldm.data.volumes import Volumes


def test_montage_places_images_in_rows():
    images = np.arange(5.0)[:, None, None, None] * np.ones((1, 4, 3, 1))
    picture = plots.montage(images, columns=3, gap=1)
    assert picture.shape == (2 * 5 + 1, 3 * 4 + 1, 1)
    npt.assert_allclose(picture[1:5, 1:4], 0)
    npt.assert_allclose(picture[6:10, 5:8], 1)
    # Gaps and empty places are grey.
    npt.assert_allclose(picture[0], 0.5)
    npt.assert_allclose(picture[6:10, 9:12], 0.5)


def test_montage_scales_values():
    assert plots.montage(np.zeros((4, 2, 2, 3))).shape[-1] == 3
    assert plots.montage(np.zeros((4, 2, 2, 5))).shape[-1] == 1
    assert np.isfinite(plots.montage(np.ones((1, 2, 2, 1)))).all()
    row = np.array([np.nan, 2.0, 2.5, 4.0]).reshape(1, 1, 4, 1)
    # Missing values are dark.
    npt.assert_array_equal(plots.montage(row, gap=0)[0, :, 0], [0, 0, 0.25, 1])
    limited = plots.montage(row, gap=0, limits=(2.25, 3.25))
    npt.assert_array_equal(limited[0, :, 0], [0, 0, 0.25, 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_montage_is_saved(tmp_path, monkeypatch, channels):
    monkeypatch.setenv("HOME", str(tmp_path))
    images = np.zeros((4, 5, 6, channels))
    plots.save_montage("~/a.png", images, scale=2)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * (2 * 8 + 2), 2 * (2 * 7 + 2))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("side", "factor"), [(100, 3), (450, 2), (600, 1), (1100, 1)])
def test_large_montages_are_not_enlarged(tmp_path, side, factor):
    plots.save_montage(tmp_path / "a.png", np.zeros((4, side, side, 1)), scale=3)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (factor * (2 * side + 6),) * 2


def test_training_is_saved_at_every_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    images = np.random.default_rng(0).random((16, 8, 8, 1))
    rounds = {"epoch": [1], "loss": [2.0], "mse": [0.1], "perplexity": [7.0]}
    shown, pairs = {"autoencoder": rounds}, (images, images)
    plots.save_training("~/a.png", shown, pairs=pairs)
    shown["diffusion"] = {"epoch": [1, 2], "loss": [1.0, 0.5], "val_loss": [1.0, 0.6]}
    plots.save_training(tmp_path / "a.png", shown, pairs=pairs, samples=images)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1200, 800)


def test_shares_have_axes_of_their_own_and_one_round_has_no_curve():
    rounds = {"epoch": [1, 2], "loss": [1, 0.5], "mse": [0.1, 0.01]}
    rounds["val_detail"] = [0, 1]
    upper, lower = plots.plot_history(rounds).axes
    assert [line.get_label() for line in upper.lines] == ["loss", "mse"]
    assert [line.get_label() for line in lower.lines] == ["val_detail"]
    (alone,) = plots.plot_history({n: v[:1] for n, v in rounds.items()}).axes
    assert not alone.lines
    assert "mse 0.1" in alone.texts[0].get_text()


def test_captions_stand_below_images(tmp_path):
    images = np.zeros((3, 20, 20, 1))
    captions = ["age=70", "age=50, which is too long for its place", "年齢=30"]
    plots.save_montage(tmp_path / "a.png", images, captions=["", "age=50", ""])
    plots.save_montage(tmp_path / "a.png", images, captions=captions)
    with Image.open(tmp_path / "a.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (2 * (3 * 23 + 14), 3 * 46, 3)
    assert (shown[69:83, :60] == 0).any()  # letters
    assert (shown[-14:, 75:] == 255).all()  # the place of a fourth


def test_letters_that_no_font_has_are_escaped(tmp_path, recwarn):
    pictures = []
    for level in ("女", "男"):
        captions = [f"sex={level}"]
        images = np.zeros((1, 20, 40, 1))
        plots.save_montage(tmp_path / "a.png", images, captions=captions)
        pictures.append((tmp_path / "a.png").read_bytes())
    assert pictures[0] != pictures[1]
    row = plots.Comparison("$_$ \udce9.nii", *np.zeros((2, 9, 9)), 3)
    plots.save_comparison(tmp_path / "b.png", [row], "sex=女 γ")
    assert not recwarn.list
    assert _pictures._drawable("sex=女 γ") == "sex=\\u5973 γ"


def test_a_comparison_is_cut_where_most_changed(tmp_path):
    before = np.random.default_rng(0).random((6, 10, 12, 1))
    after = before.copy()
    after[1, 7, 3] = 9
    # Its first axis is to the left: the voxel is on the right.
    affine = np.diag([-2, 1, 1, 1])
    row = plots.Comparison.of("a.nii", before, after, affine)
    assert row.axial == 12  # voxels of 2 mm are shown twice
    spots = np.argwhere(row.after == 9).tolist()
    assert {tuple(spot) for spot in spots} >= {(12 - 1 - 1 - 7, 9), (12 - 1 - 1 - 7, 8)}
    assert (row.before != row.after).sum() == 2 + 2 + 1
    plots.save_comparison(tmp_path / "a.png", [row, row], "what was asked for")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 1500


def test_figures_show_themselves(rng):
    images, volumes = rng.random((5, 8, 8, 1)), rng.random((3, 4, 5, 6, 2))
    scans = [nib.Nifti1Image(x[..., 0], np.diag([-2, 2, 2, 1])) for x in volumes]
    affine = np.diag([1, 2, 3, 1])
    pair = Volumes(volumes, None, affine, [])
    pair.channels = as_channels(["T1w", "FA"])
    history = {"epoch": [1, 2], "loss": [1.0, 0.5], "val_loss": [1.0, 0.6]}
    for figure in (
        plots.plot_history(history),
        plots.plot_history({"autoencoder": history, "diffusion": history}),
        plots.plot_history({"autoencoder": SimpleNamespace(history_=history)}),
        plots.plot_samples(images),
        plots.plot_samples(volumes, affine=affine),
        plots.plot_samples(pair),
        plots.plot_samples(scans),
        plots.plot_samples(scans[0]),
        plots.plot_samples([{"T1w": scan, "dseg": scan} for scan in scans]),
        plots.plot_reconstructions(images, images),
        plots.plot_reconstructions(scans, scans),
        plots.plot_reconstructions(pair, volumes),
        plots.plot_reconstructions(volumes, pair),
        plots.plot_latents(rng.random((4, 3, 3, 8))),
        plots.plot_latents(rng.random((4, 3, 3, 4, 2))),
    ):
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.fixture
def plot_pairs(monkeypatch):
    """Return what plots reconstructions, and returns the pictures of both."""
    arrange = mock.Mock(side_effect=plots.montage_pairs)
    monkeypatch.setattr(plots, "montage_pairs", arrange)

    def plot_pairs(*pair):
        assert isinstance(plots.plot_reconstructions(*pair), Figure)
        return arrange.call_args.args

    return plot_pairs


def test_scans_of_several_shapes_are_padded(rng, plot_pairs):
    shapes = (4, 5, 6), (7, 3, 2)
    scans = [nib.Nifti1Image(rng.random(shape), np.eye(4)) for shape in shapes]
    shown = plots.pictures(scans)
    assert shown.shape == (2, 6, max(4 + 4 + 5, 7 + 7 + 3), 1)
    npt.assert_array_equal(shown[0, :, 2:15], plots.pictures(scans[0])[0])
    assert plot_pairs(scans, scans)[0].shape == shown.shape


def test_channels_stand_below_each_other_as_bright(rng):
    fine, coarse = rng.random((8, 6, 7)), np.zeros((4, 3, 3), "uint8")
    coarse[2] = 200
    scans = {"T1w": fine, "dseg": coarse}
    scan = {name: nib.Nifti1Image(data, np.eye(4)) for name, data in scans.items()}
    (picture,) = plots.pictures(scan)
    assert picture.shape == (7 + 3, 8 + 8 + 6, 1)
    assert picture[:7].max() == picture[7:].max() == 1


def test_reconstructions_of_channels_are_as_bright_as_they_are(rng, plot_pairs):
    scan = rng.uniform(50, 99, (4, 4, 4))
    pair = [{"T1w": nib.Nifti1Image(data, np.eye(4))} for data in (scan, scan / 2)]
    before, after = plot_pairs(*pair)
    assert after.mean() < 0.5 * before.mean()


def test_reconstructions_stand_below_images_also_in_a_row_that_is_not_full():
    images = np.arange(1.0, 10)[:, None, None, None] * np.ones((1, 4, 4, 1))
    picture = plots.montage_pairs(images, images + 10)
    assert picture[-4, 4] > picture[-10, 4] > 0.4  # of the ninth, which is alone
    npt.assert_allclose(picture[-4, 10], 0)


def test_each_scan_has_its_own_brightness(rng, plot_pairs):
    data = rng.random((4, 4, 4))
    scans = [nib.Nifti1Image(data * unit, np.eye(4)) for unit in (1, 1000)]
    named = [{"T1w": scan, "dseg": scans[0]} for scan in scans]
    for images in (scans, named):
        before, _ = plot_pairs(images, images)
        npt.assert_allclose(before[0], before[1], atol=1e-5)
    sentence = "2 images and 1 reconstructions; give one"
    arrays = np.ones((2, 4, 4, 1)), np.ones((1, 4, 4, 1))
    for uneven in (scans, scans[:1]), (tuple(scans), (scans[0],)), arrays:
        with pytest.raises(InputError, match=sentence):
            plots.plot_reconstructions(*uneven)
    with pytest.raises(InputError, match="differ in size; give arrays of the same"):
        plots.plot_reconstructions(arrays[0], np.ones((2, 4, 3, 1)))


def test_latents_of_two_channels_are_shown_in_two_colours(rng, monkeypatch):
    shown = mock.Mock(side_effect=plots.montage)
    monkeypatch.setattr(plots, "montage", shown)
    plots.plot_latents(rng.random((4, 3, 3, 2)))
    assert [x.max() > 0 for x in np.rollaxis(shown.call_args.args[0], -1)] == [1, 1, 0]


def test_planes_are_padded_as_where_there_is_nothing():
    volume = np.full((1, 4, 4, 8, 1), 0.5, "float32")
    volume[:, 2, 2, 4] = 0.1
    npt.assert_array_equal(plots.planes(volume, np.eye(4))[:, [0, -1]], 0.5)


def test_images_without_channels_are_refused():
    with pytest.raises(InputError, match="images must be .* not \\(3, 8, 8\\)"):
        plots.plot_samples(np.zeros((3, 8, 8)))
    for nothing in ([], np.zeros((0, 8, 8, 1))):
        with pytest.raises(InputError, match="images must be"):
            plots.plot_samples(nothing)


def test_unfitted_estimators_have_no_history():
    with pytest.raises(InputError, match="this VQVAE is not fitted; call fit"):
        plots.plot_history(VQVAE())


def test_scans_are_turned_so_that_left_is_left():
    volume = np.zeros((4, 4, 4))
    volume[0] = 1  # of an image whose first axis goes to the left: the right end
    (turned,) = plots.pictures(nib.Nifti1Image(volume, np.diag([-1, 1, 1, 1])))
    axial = turned[:, :4, 0]
    npt.assert_array_equal(axial, np.tile([0, 0, 0, 1], (4, 1)))
