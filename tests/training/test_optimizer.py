"""The flat optimizer equals that of Keras."""

from functools import partial

import keras
from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.training import ResolvedOptions, _optimizer as optimizers
from dipy_ldm.training._optimizer import FlatAdam
from dipy_ldm.training._options import cosine_decay
from dipy_ldm.training._precision import Precision

SETTINGS = {"learning_rate": 1e-2}
AVERAGED = {"ema_momentum": 0.8}
# Of PyTorch it would need a compiler of C++.
JIT = [False] if keras.config.backend() == "torch" else [False, True]


def network():
    """Return a network with kernels of more inputs than outputs, and of fewer."""
    keras.utils.set_random_seed(0)
    images = keras.Input((6, 2))
    x = keras.layers.Dense(5, use_bias=False)(images)
    x = keras.layers.Conv1D(4, 3, activation="tanh")(x)
    x = keras.layers.Conv1D(8, 1, activation="tanh")(x)
    x = keras.layers.Conv1D(4, 2, activation="tanh")(x)
    return keras.Model(images, keras.layers.Dense(1)(keras.layers.Flatten()(x)))


def pairs(steps):
    rng = np.random.default_rng(1)
    # The targets are far away at first, so that gradients are clipped.
    scale = np.linspace(30, 0.1, steps)[:, None, None]
    return rng.normal(size=(steps, 4, 6, 2)), scale * rng.normal(size=(steps, 4, 1))


def averaging(model, **options):
    """Return an optimizer that averages the weights of a model, in a copy of it."""
    copy = keras.models.clone_model(model)
    return FlatAdam(averages=copy.trainable_variables, **SETTINGS | options)


def averages(optimizer):
    return [ops.convert_to_numpy(average) for average in optimizer.averages]


def train(optimizer, steps=20, model=None, **compiled):
    model = model or network()
    model.compile(optimizer, loss="mse", auto_scale_loss=False, **compiled)
    x, y = pairs(steps)
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(x.reshape(-1, 6, 2), y.reshape(-1, 1), **options)
    return model


def changes_of(optimizer, **options):
    """Return what one step changes of each weight."""
    before = network().get_weights()
    after = train(optimizer, steps=1, **options).get_weights()
    return [new - old for new, old in zip(after, before, strict=True)]


ACCUMULATED = {"gradient_accumulation_steps": 2, **AVERAGED}
CLIPPED = {"global_clipnorm": 1.0, **AVERAGED}
WHOLE = 2**22


@pytest.mark.parametrize(
    ("options", "size", "n_groups", "jit_compile"),
    [
        # Each weight alone, as by Keras' optimizers.
        ({"gradient_accumulation_steps": 3}, 0, 9, False),
        (CLIPPED, 60, 5, False),
        *((ACCUMULATED | CLIPPED, WHOLE, 1, jit_compile) for jit_compile in JIT),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_training_is_that_of_keras(options, size, n_groups, jit_compile, monkeypatch):
    monkeypatch.setattr(optimizers, "MAX_GROUP_SIZE", size)
    rate = cosine_decay(1e-2, 20)
    averaged = "ema_momentum" in options
    theirs = keras.optimizers.Adam(rate, use_ema=averaged, **options)
    theirs = train(theirs, jit_compile=jit_compile)
    model = network()
    make = partial(averaging, model) if averaged else FlatAdam
    optimizer = make(**options | {"learning_rate": rate})
    train(optimizer, model=model, jit_compile=jit_compile)
    assert optimizer.iterations == theirs.optimizer.iterations
    assert len(optimizer._groups) == n_groups
    # Which Keras makes of the weights in the end.
    ours = averages(optimizer) if averaged else model.get_weights()
    for own, other in zip(ours, theirs.get_weights(), strict=True):
        npt.assert_allclose(own, other, atol=1e-6)


def test_loss_is_scaled_as_by_keras():
    """To the same where some gradients are too large for the scale."""
    ours = averaging(
        model := network(), **CLIPPED, initial_scale=2.0**126, growth_steps=4
    )
    theirs = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(**SETTINGS, **CLIPPED, use_ema=True),
        initial_scale=2.0**126,
        dynamic_growth_steps=4,
    )
    train(ours, steps=30, model=model)
    weights = train(theirs, steps=30).get_weights()
    assert 0 < int(ours.iterations) < 30
    assert ours.iterations == theirs.iterations
    assert ours._scale == theirs.dynamic_scale
    for own, other in zip(averages(ours), weights, strict=True):
        npt.assert_allclose(own, other, atol=1e-6)


@pytest.mark.tensorflow
def test_gradients_of_a_weight_that_is_used_in_part_are_whole():
    """Keras squares what each use of a row adds to its gradient, not their sum."""
    tf = pytest.importorskip("tensorflow")
    states = []
    for take in (
        lambda table, rows: ops.take(table, rows, axis=0),
        lambda table, rows: ops.one_hot(rows, 4) @ table,
    ):
        table = keras.Variable(np.ones((4, 2), "float32"))
        with tf.GradientTape() as tape:
            loss = ops.sum(take(table, ops.convert_to_tensor([0, 2, 2])) ** 2)
        gradient = tape.gradient(loss, table.value)
        assert isinstance(gradient, tf.IndexedSlices) == (not states)
        optimizer = FlatAdam(**SETTINGS)
        for _ in range(2):
            optimizer.apply([gradient], [table])
        states.append([v.numpy() for v in (table, *optimizer.variables)])
    for in_part, whole in zip(*states, strict=True):
        npt.assert_array_equal(in_part, whole)


@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "averaged"])
def test_kernels_of_many_inputs_are_changed_more_slowly(averaged):
    changes = []
    for options in (
        {},
        {"base_fan_in": 4},
        {"base_fan_in": 4, "unnormalised": []},
        {"base_fan_in": 4, "unnormalised": ["another/kernel"]},
    ):
        model = network()
        before = model.get_weights()
        optimizer = averaging(model, **AVERAGED, **options)
        train(optimizer, steps=1, model=model)
        after = averages(optimizer) if averaged else model.get_weights()
        changes.append([new - old for new, old in zip(after, before, strict=True)])
    for full, slow, *by_the_root in zip(*changes, strict=True):
        fan_in = np.prod(full.shape[:-1]) if full.ndim > 2 else 1
        factor = max(1, fan_in / 4)
        npt.assert_allclose(slow, full / factor, rtol=1e-4)
        # Of those with normalised inputs.
        for change in by_the_root:
            npt.assert_allclose(change, full / factor**0.5, rtol=1e-4)


def test_newton_schulz_iterations_take_values_to_about_1():
    # The least that there is of 256 values, by what is added to each.
    values = np.geomspace((optimizers._DAMPING / 256) ** 0.5, 1.015, 10_001)
    results, slope = values, 1.0
    for a, b, c in optimizers._NEWTON_SCHULZ:
        slope = slope * (a + 3 * b * results**2 + 5 * c * results**4)
        results = a * results + b * results**3 + c * results**5
    assert 0.67 < results.min() and results.max() < 1.33
    assert np.abs(values * slope / results).max() < 8.1


def polar(kernel):
    """Return what becomes of a kernel by its singular values, one by one."""
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype("float64")
    rows, values, columns = np.linalg.svd(matrix, full_matrices=False)
    values /= np.linalg.norm(values)
    squares, factor = values**2 + optimizers._DAMPING / len(values), 1.0
    for a, b, c in optimizers._NEWTON_SCHULZ:
        more = a + b * squares + c * squares**2
        factor, squares = factor * more, more**2 * squares
    result = (rows * (factor * values)) @ columns
    return (result * max(matrix.shape) ** 0.5).reshape(kernel.shape)


@pytest.mark.parametrize("size", [WHOLE, 60, 0])
def test_kernels_are_changed_by_orthogonal_matrices(size, monkeypatch):
    monkeypatch.setattr(optimizers, "MAX_GROUP_SIZE", size)
    x, y = pairs(1)
    model = network()
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    model.train_on_batch(x[0], y[0])
    gradients = [
        old - new for old, new in zip(before, model.get_weights(), strict=True)
    ]
    adam, muon = (FlatAdam(**SETTINGS, orthogonal=value) for value in (False, True))
    changes = zip(gradients, changes_of(adam), changes_of(muon), strict=True)
    for gradient, plain, change in changes:
        if gradient.ndim < 3:
            npt.assert_allclose(change, plain, atol=1e-6)
            continue
        change = -change / SETTINGS["learning_rate"]
        npt.assert_allclose(change, polar(gradient), atol=2e-3)
        values = np.linalg.svd(change.reshape(-1, change.shape[-1]), compute_uv=False)
        values /= max(change.size // change.shape[-1], change.shape[-1]) ** 0.5
        assert 0.6 < values[0] < 1.3
    # Kernels have a momentum alone.
    n_kernels = sum(group.velocity is None for group in muon._groups)
    assert n_kernels == {WHOLE: 1, 60: 3, 0: 3}[size]


def test_directions_with_next_to_no_gradient_are_not_learnt_from(rng):
    before = rng.standard_normal((3, 8, 8)).astype("float32")
    gradient = rng.standard_normal((3, 8, 8)).astype("float32")
    gradient[..., -1] = 0
    for noise, most in ((0, 1e-4), (1e-5, 3e-4)):
        kernel = keras.Variable(before)
        optimizer = FlatAdam(**SETTINGS, orthogonal=True)
        noisy = gradient + noise * rng.standard_normal(gradient.shape)
        optimizer.apply([ops.convert_to_tensor(noisy, "float32")], [kernel])
        change = np.abs(ops.convert_to_numpy(kernel) - before)[..., -1]
        assert change.max() < most * SETTINGS["learning_rate"]


def test_kernels_without_a_gradient_stay():
    kernel = keras.Variable(np.ones((3, 2, 4), "float32"))
    optimizer = FlatAdam(**SETTINGS, orthogonal=True)
    optimizer.apply([ops.zeros(kernel.shape)], [kernel])
    npt.assert_array_equal(kernel, np.ones(kernel.shape))


def test_kernels_of_attention_have_the_inputs_of_a_position_alone(rng):
    x = keras.Input((6, 8))
    attention = keras.layers.MultiHeadAttention(4, 2)
    model = keras.Model(x, attention(x, x, use_causal_mask=False))
    optimizer = FlatAdam(**SETTINGS, base_fan_in=8, orthogonal=True)
    kernels = [w for w in model.trainable_variables if len(w.shape) > 2]
    # Of queries, keys and values (inputs, heads, each); and what goes back.
    shapes = [tuple(kernel.shape) for kernel in kernels]
    assert shapes == [(8, 4, 2)] * 3 + [(4, 2, 8)]
    before = [ops.convert_to_numpy(kernel) for kernel in kernels]
    gradients = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    optimizer.apply([ops.convert_to_tensor(of) for of in gradients], kernels)
    for old, kernel, gradient in zip(before, kernels, gradients, strict=True):
        change = (old - ops.convert_to_numpy(kernel)) / SETTINGS["learning_rate"]
        expected = polar(gradient.reshape(8, 8))
        npt.assert_allclose(change.reshape(8, 8), expected, atol=2e-3)


@pytest.mark.parametrize(
    "momentum, batches, followed",
    [(0.9, 1, range(13)), (0.99, 1, [0, 4, 8, 12]), (0.99, 2, [0, 1, 4, 8, 12])],
)
def test_averages_follow_every_few_batches(momentum, batches, followed):
    model = network()
    options = {"gradient_accumulation_steps": batches} if batches > 1 else {}
    optimizer = averaging(model, ema_momentum=momentum, **options)
    model.compile(optimizer, loss="mse")
    expected = None
    for number, batch in enumerate(zip(*pairs(13), strict=True)):
        model.train_on_batch(*batch)
        if number in followed:
            weights = model.get_weights()
            share = 1 - momentum ** (followed[-1] - followed[-2])
            old = weights if number < batches else expected
            expected = [a + share * (w - a) for a, w in zip(old, weights, strict=True)]
        for average, value in zip(averages(optimizer), expected, strict=True):
            npt.assert_allclose(average, value, atol=1e-6)


def test_training_that_is_resumed_is_the_same():
    options = {"initial_scale": 8.0, "growth_steps": 7, "orthogonal": True}
    options |= ACCUMULATED | CLIPPED
    whole, first, then = models = [network() for _ in range(3)]
    x, y = pairs(10)
    parts = slice(None), slice(5), slice(5, 10)
    for model, part in zip(models, parts, strict=True):
        optimizer = averaging(model, **options)
        model.compile(optimizer, loss="mse", auto_scale_loss=False)
        optimizer.build(model.trainable_variables)
        if model is then:
            model.set_weights(first.get_weights())
            optimizer.set_weights([v.numpy() for v in first.optimizer.variables])
        for batch in zip(x[part], y[part], strict=True):
            model.train_on_batch(*batch)
    results = (m.get_weights() + averages(m.optimizer) for m in (whole, then))
    for weight, resumed in zip(*results, strict=True):
        npt.assert_array_equal(resumed, weight)


def test_non_finite_gradients_are_skipped():
    weight = keras.Variable([1.0, 2.0])
    options = {"gradient_accumulation_steps": 2, "initial_scale": 16.0}
    options |= {"growth_steps": 3, "averages": [keras.Variable([0.0, 0.0])]}
    optimizer = FlatAdam(**SETTINGS, **AVERAGED, **options)
    optimizer.build([weight])
    assert optimizer.scale_loss(ops.ones(())) == 16
    before = [v.numpy() for v in optimizer.variables]
    optimizer.apply([ops.convert_to_tensor([1.0, np.inf])])
    assert optimizer.scale_loss(ops.ones(())) == 8
    npt.assert_array_equal(weight, [1, 2])
    for old, variable in zip(before, optimizer.variables, strict=True):
        if variable.name != "scale":
            npt.assert_array_equal(variable, old)
    for _ in range(3):
        optimizer.apply([ops.convert_to_tensor([8.0, -8.0])])
    assert optimizer.scale_loss(ops.ones(())) == 16
    npt.assert_allclose(weight, [0.99, 2.01], atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_only_float16_scales_the_loss(precision):
    chosen = Precision(precision, "for a test")
    training = ResolvedOptions(1, learning_rate=1e-3, precision=chosen)
    optimizer = training.optimizer(10)
    optimizer.build([keras.Variable([1.0])])
    loss = ops.ones(())
    assert (optimizer.scale_loss(loss) is loss) == (precision != "float16")


def test_configuration_makes_an_equal_optimizer():
    config = FlatAdam(initial_scale=4.0, **SETTINGS, **AVERAGED).get_config()
    assert FlatAdam.from_config(config).get_config() == config
