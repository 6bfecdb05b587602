import numpy as np
import pytest
from scipy.spatial.distance import cdist

from dipy_ldm.metrics import frechet_distance, nearest_distance, precision_recall
from dipy_ldm.validation import InputError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def of_moments(rng, n, mean, covariance):
    """Draw samples that have exactly a mean and a covariance."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    x @= np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_diagonal_gaussians_is_the_closed_form(rng):
    a = of_moments(rng, 500, [0, 1, 2], np.diag([1.0, 4.0, 9.0]))
    b = of_moments(rng, 700, [1, 1, 0], np.diag([4.0, 4.0, 0.25]))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 2.5**2)


def test_frechet_of_correlated_gaussians_is_the_closed_form(rng):
    a, b = np.array([[2, 1], [1, 3]]), np.array([[1, -0.5], [-0.5, 2]])
    # The trace of the root of a 2 x 2 matrix with determinant d is sqrt(tr + 2 sqrt d).
    product = a @ b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    samples = [of_moments(rng, 300, [0, 0], covariance) for covariance in (a, b)]
    assert frechet_distance(*samples) == pytest.approx(3 + 5 - 2 * root)


def test_frechet_of_many_samples_nears_that_of_their_gaussians(rng):
    a = rng.standard_normal((100_000, 4))
    b = 2 * rng.standard_normal((100_000, 4)) + 3
    assert frechet_distance(a, b) == pytest.approx(4 * (9 + 1), rel=0.01)


def test_frechet_is_zero_for_equal_sets(rng):
    a = rng.standard_normal((200, 20)) * np.logspace(-3, 3, 20)
    assert frechet_distance(a, a) == 0
    assert frechet_distance(a, rng.permutation(a)) == 0


def test_frechet_is_zero_for_equal_sets_of_few_dimensions(rng):
    a = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 20))
    assert frechet_distance(a, a) == 0


def test_frechet_is_symmetric_and_not_negative(rng):
    a, b = rng.standard_normal((2, 100, 30))
    b[:, :5] = 0
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, b) > 0


def test_frechet_flattens_and_accepts_integers(rng):
    a, b = rng.integers(0, 255, (2, 50, 3, 3), dtype=np.uint8)
    flat = [x.reshape(50, 9).astype(float) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(*flat))


def test_identical_sets_have_full_precision_and_recall(rng):
    a = rng.standard_normal((600, 5))
    assert precision_recall(a, a) == (1, 1)


def test_sets_far_apart_have_no_precision_and_recall(rng):
    a = rng.standard_normal((600, 5))
    assert precision_recall(a, a + 100) == (0, 0)


def test_samples_of_one_mode_are_precise_but_do_not_recall(rng):
    real = rng.standard_normal((600, 2)) + 20 * rng.integers(0, 2, (600, 1))
    fake = rng.standard_normal((600, 2))
    precision, recall = precision_recall(real, fake)
    assert precision > 0.9
    assert 0.3 < recall < 0.6


@pytest.mark.parametrize("k", [1, 4])
def test_precision_and_recall_against_brute_force(rng, k):
    real, fake = rng.standard_normal((300, 3)), rng.standard_normal((400, 3)) + 1

    def covered(queries, references):
        radii = np.sort(cdist(references, references))[:, k]
        return np.mean((cdist(queries, references) <= radii).any(axis=1))

    expected = covered(fake, real), covered(real, fake)
    assert precision_recall(real, fake, k) == pytest.approx(expected)


@pytest.mark.parametrize("block_size", [1, 7, 256])
def test_nearest_distance_against_brute_force_whatever_the_block(rng, block_size):
    queries, references = rng.random((30, 4, 2)), rng.random((50, 4, 2))
    expected = cdist(queries.reshape(30, 8), references.reshape(50, 8)).min(axis=1)
    distance = nearest_distance(queries, references, block_size)
    np.testing.assert_allclose(distance, expected)


def test_copies_are_at_distance_zero_even_far_from_the_origin(rng):
    references = (rng.random((300, 784)) + 1000).astype(np.float32)
    assert not nearest_distance(references[:10], references).any()


def test_bytes_do_not_wrap_around():
    distance = nearest_distance(np.zeros((1, 2), np.uint8), np.full((1, 2), 200, "B"))
    assert distance == pytest.approx(200 * np.sqrt(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: frechet_distance(np.ones((9, 2)), np.ones((9, 3))),
            "differ at most in n",
        ),
        (lambda: frechet_distance(np.ones(9), np.ones(9)), "n, \\*shape"),
        (lambda: frechet_distance(np.eye(4), np.eye(4)), "at least 5, not 4"),
        (lambda: precision_recall(np.eye(3), np.eye(3)), "at least 4, not 3"),
        (lambda: precision_recall(np.eye(3), np.eye(3), k=0), "k must be at least 1"),
        (lambda: nearest_distance(np.eye(3), np.ones((0, 3))), "at least 1, not 0"),
        (lambda: nearest_distance(np.eye(3), np.eye(3), 0), "block_size must be"),
        (lambda: nearest_distance(np.eye(3), np.eye(3) * np.nan), "not finite"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()
