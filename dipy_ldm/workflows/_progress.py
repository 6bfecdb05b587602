"""What a training shows while it goes on: its figures, and a picture."""

import csv
import io
from pathlib import Path
import time
from typing import Any

import numpy as np

from dipy_ldm._utils.files import replacing


class Report:
    """Write the figures after every round, and the picture as often as is cheap."""

    # Drawing the picture shall take no more than this share of the time.
    SHARE = 0.05

    def __init__(
        self,
        history_path: Path,
        picture_path: Path,
        images: np.ndarray,
        affine: np.ndarray | None,
        sources: np.ndarray | None = None,
    ) -> None:
        self.history_path = history_path
        self.picture_path = picture_path
        self.images = images if affine is None else images[:4]
        self.affine = affine
        self.sources = None if sources is None else sources[: len(self.images)]
        self.histories: dict[str, dict] = {}
        self.pairs: tuple | None = None
        self.samples: np.ndarray | None = None
        self.not_before = 0.0

    def autoencoder(self, vqvae: Any) -> None:
        """Report on the first stage."""
        self._tell("autoencoder", vqvae, self._reconstruct)

    def diffusion(self, model: Any) -> None:
        """Report on the second stage."""
        # Where training goes on, the first stage may have ended in another process.
        self.histories["autoencoder"] = model.vqvae.history_
        if self.pairs is None:
            self._reconstruct(model.vqvae)
        self._tell("diffusion", model, self._sample)

    def detector(self, model: Any, detector: Any) -> None:
        """Report on the last stage, if there is one."""
        self.histories = {
            "autoencoder": model.vqvae.history_,
            "diffusion": model.history_,
        }

        def look(_):
            if self.samples is None:
                self._reconstruct(model.vqvae)
                self._sample(model)

        self._tell("detector", detector, look)

    def _reconstruct(self, vqvae):
        pair = self.images, vqvae.predict(self.images)
        self.pairs = tuple(map(self._flat, pair))

    def _sample(self, model):
        n = 36 if self.affine is None else 4
        n = n if self.sources is None else len(self.sources)
        self.samples = self._flat(model.predict(n, source=self.sources, steps=10))

    def _flat(self, images):
        from dipy_ldm import plots

        return images if self.affine is None else plots.planes(images, self.affine)

    def _tell(self, stage, estimator, look):
        self.histories[stage] = estimator.history_
        write_table(self.history_path, self.histories)
        start = time.monotonic()
        if start >= self.not_before:
            look(estimator)
            self._draw()
            end = time.monotonic()
            self.not_before = end + (end - start) / self.SHARE

    def finish(self, model: Any) -> None:
        """Show how it ended, also what was done by a process before this."""
        self.histories = {
            "autoencoder": model.vqvae.history_,
            "diffusion": model.history_,
        }
        if model.detector_ is not None:
            self.histories["detector"] = model.detector_.history_
        write_table(self.history_path, self.histories)
        self._reconstruct(model.vqvae)
        self._sample(model)
        self._draw()

    def _draw(self):
        from dipy_ldm import plots

        plots.save_training(
            self.picture_path, self.histories, pairs=self.pairs, samples=self.samples
        )


def write_table(path: Path, histories: dict[str, dict]) -> None:
    """Write one line for each round of each stage."""
    names = list(dict.fromkeys(name for h in histories.values() for name in h))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["stage", *names])
    for stage, history in histories.items():
        for number, _ in enumerate(history["loss"]):
            values = [history[n][number] if n in history else "" for n in names]
            writer.writerow([stage, *values])
    with replacing(path) as partial:
        partial.write_text(table.getvalue(), "utf-8")
