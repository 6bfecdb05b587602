"""From outside of the package: a sampler, a bottleneck, a loss, a kind of channel."""

from dataclasses import dataclass
import sys

from dipy.workflows.workflow import Workflow
import numpy as np
import numpy.testing as npt
import processes

from dipy_ldm import VQVAE
from dipy_ldm.autoencoder.losses import LOSSES
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS, Codebook
from dipy_ldm.data.channels import KINDS, Channel, as_channels, split_channels
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


def test_a_bottleneck_a_loss_and_a_kind_of_channel(blobs, monkeypatch):
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

    @dataclass(frozen=True)
    class Phase(Channel):
        """Goes round once."""

        kind = "phase"

        def restore(self, images):
            return 2 * np.pi * images[..., 0]

    monkeypatch.setitem(BOTTLENECKS, "first", FirstCode)
    monkeypatch.setitem(LOSSES, "nothing", nothing)
    monkeypatch.setitem(KINDS, "phase", Phase)
    records = as_channels(["phi=phase"])
    vqvae = VQVAE(**TINY, bottleneck="first", loss="nothing")
    vqvae.fit(blobs, channels=records, **FIT)
    # All that is left of the loss is the codebook's.
    assert np.isfinite(vqvae.history_["loss"]).all()
    assert vqvae.history_["usage"] == [1 / 8]
    assert vqvae.history_["revived"] == [0]
    assert vqvae.codes(vqvae.encode(blobs)).max() == 0
    saved = VQVAE.from_saved(vqvae.to_tensors(), vqvae.to_document())
    assert isinstance(saved.quantizer_, FirstCode)
    npt.assert_array_equal(saved.predict(blobs[:3]), vqvae.predict(blobs[:3]))
    assert saved.channels_ == records
    parts = split_channels(blobs, saved.channels_)
    npt.assert_array_equal(parts["phi"], 2 * np.pi * blobs[..., 0])


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
