"""Extensions from outside the package: a sampler, bottleneck, loss, and channel."""

from dataclasses import dataclass
import sys

from dipy.workflows.workflow import Workflow
import numpy as np
import numpy.testing as npt
import processes
from scans import SPACE, grid_affine, save, soft_balls

from dipy_ldm import VQVAE
from dipy_ldm.autoencoder.losses import LOSSES
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS, Codebook
from dipy_ldm.data._grid import Grid
from dipy_ldm.data.channels import KINDS, Channel, split_channels
from dipy_ldm.diffusion.samplers import SAMPLERS, Sampler
from dipy_ldm.diffusion.schedules import uniform_time
from dipy_ldm.workflows import cli

TINY = {"widths": (8,), "n_codes": 8, "code_dim": 2}
FIT = {"epochs": 1, "batch_size": 16, "verbose": False}


def test_a_sampler(diffusion, monkeypatch):
    def at_once(x, clean, now, after, noise, state):
        """Go to the estimate, whatever the level."""
        return clean, state

    monkeypatch.setitem(SAMPLERS, "at once", Sampler(at_once, uniform_time))
    images = diffusion.predict(2, sampler="at once", steps=1, guidance=1)
    same = diffusion.predict(2, sampler="ddim", steps=1, guidance=1)
    npt.assert_allclose(images, same, atol=1e-5)


def test_a_bottleneck_and_a_loss(blobs, monkeypatch):
    class FirstCode(Codebook):
        """Knows only one answer, and nobody watches over the others."""

        def nearest(self, vectors):
            return 0 * super().nearest(vectors)

        def figures(self):
            figures, _ = super().figures()
            return figures, np.array([], int)

    def nothing(images, reconstructed, weights):
        """Like everything."""
        return 0 * weights[:, 0, 0, 0]

    monkeypatch.setitem(BOTTLENECKS, "first", FirstCode)
    monkeypatch.setitem(LOSSES, "nothing", nothing)
    vqvae = VQVAE(**TINY, bottleneck="first", loss="nothing")
    vqvae.fit(blobs, **FIT)
    # All that is left of the loss is the codebook's.
    assert np.isfinite(vqvae.history_["loss"]).all()
    assert vqvae.history_["usage"] == [1 / 8]
    assert vqvae.history_["revived"] == [0]
    assert vqvae.codes(vqvae.encode(blobs)).max() == 0
    saved = VQVAE.from_saved(vqvae.to_tensors(), vqvae.to_document())
    assert isinstance(saved.quantizer_, FirstCode)
    npt.assert_array_equal(saved.predict(blobs[:3]), vqvae.predict(blobs[:3]))


def test_a_kind_of_channel(tmp_path, load, monkeypatch):
    @dataclass(frozen=True)
    class Halves(Channel):
        """Has a column for each half of its range."""

        kind = "halves"
        width = 2

        def conform(self, file, data, affine, grid):
            image, origin = super().conform(file, data, affine, grid)
            return np.clip(np.concatenate([2 * image, 2 * image - 1], -1), 0, 1), origin

        def to_values(self, images):
            return images.sum(-1) / 2

        def bring_back(self, images, origin):
            return super().bring_back(self.to_values(images)[..., None], origin)

    monkeypatch.setitem(KINDS, "halves", Halves)
    scans = soft_balls(4, 0, SPACE)
    for i, scan in enumerate(scans):
        for suffix in ("SWI", "T1w"):
            save(tmp_path / f"sub-{i}_{suffix}.nii", 9 * scan[..., 0], grid_affine())
    volumes = load(tmp_path, channels=["T1w", "SWI=halves"])
    assert volumes.images.shape == (4, *SPACE, 3)
    parts = split_channels(volumes.images, volumes.channels)
    npt.assert_allclose(parts["SWI"], parts["T1w"], atol=1e-6)
    vqvae = VQVAE(**TINY)
    vqvae.fit(volumes.images, channels=volumes.channels, **FIT | {"batch_size": 4})
    saved = VQVAE.from_saved(vqvae.to_tensors(), vqvae.to_document())
    assert saved.channels_ == volumes.channels
    own, grid = saved.channels_[1], Grid(SPACE, volumes.affine)
    image, origin = own.read(volumes.files[0].with_name("sub-0_SWI.nii"), grid)
    values = own.bring_back(image, origin)
    npt.assert_allclose(values.max(), origin.intensities.high[0], rtol=1e-5)
    inside = origin.data < origin.intensities.high
    npt.assert_allclose(values[inside], origin.data[inside], atol=1e-4)


def test_a_command(monkeypatch, capsys):
    class SayFlow(Workflow):
        def run(self, words, times=1):
            """Say something.

            Parameters
            ----------
            words : variable string
                What is said.
            times : int, optional
                How often.
            """
            print(" ".join(words * times))

    monkeypatch.setattr(sys, "argv", ["say", "so", "--times", "2"])
    with processes.fresh_loggers():
        cli.run(SayFlow())
    assert "so so" in capsys.readouterr().out
