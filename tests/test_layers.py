"""Layers: embedded times."""

from keras import ops
import numpy as np
import numpy.testing as npt

from dipy_ldm import networks
from dipy_ldm.bottlenecks import Codebook
from dipy_ldm.layers import TimeEmbedding


def test_times_are_in_full_precision_under_a_mixed_policy():
    with networks.precision("bfloat16"):
        assert TimeEmbedding(8).compute_dtype == "float32"
        assert Codebook(4).compute_dtype == "float32"


def test_time_embedding_tells_times_apart():
    features = np.asarray(TimeEmbedding(32)(ops.linspace(0.0, 1.0, 101)))
    assert features.shape == (101, 32)
    npt.assert_allclose((features**2).sum(-1), 16, rtol=1e-5)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[~np.eye(101, dtype=bool)].min() > 0.1
