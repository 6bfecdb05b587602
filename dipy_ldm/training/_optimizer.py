"""The optimizer of all stages: Adam and Muon on concatenated weights."""

from collections.abc import Callable
from functools import partial
import inspect
import math
from typing import Any, NamedTuple

import keras
from keras import ops
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._backend.fusion import cached_trace, fused, sum_of_squares
from dipy_ldm._utils.types import Tensor

# Weights updated as one vector: an update takes several times their memory. With 0 each
# weight is updated alone, as by Keras' optimizers.
MAX_GROUP_SIZE = 2**22

# Keras' defaults for Adam.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7

# Coefficients of iterations s -> a s + b s^3 + c s^5, which map singular values from
# 0.01 to 1 to within 0.33 of 1, with rounding errors amplified eightfold. Others reach
# 0.27, but take the largest values down to 0.08 on the way, which amplifies rounding
# errors a thousandfold.
_NEWTON_SCHULZ = (
    (5.2509, -12.1041, 7.3445),
    (3.9194, -5.5138, 2.0506),
    (3.2046, -3.1869, 1.0079),
)
# Maximum number of steps between updates of the averages (EMA), which read all weights.
# With 1 they are updated after each step, as by Keras' optimizers.
MAX_AVERAGING_INTERVAL = 4
# Added to squared singular values, as a share of their mean: orthogonalisation would
# amplify rounding errors in directions with almost no gradient.
_DAMPING = 0.03


class _Group(NamedTuple):
    """Weights that are updated as one vector, and their optimizer state.

    ``indices`` are theirs among all weights; groups without ``velocity`` are
    kernels that are updated by Muon.
    """

    weights: list
    indices: list[int]
    momentum: Any
    velocity: Any = None
    sum: Any = None


@keras.saving.register_keras_serializable("dipy_ldm")
class FlatAdam(keras.optimizers.Optimizer):
    """Adam :footcite:p:`Kingma2015` on concatenated weights, optionally with Muon.

    It computes the same as ``keras.optimizers.Adam``, which takes dozens of operations
    per weight: TensorFlow needs as long to trace and optimise these as for all the rest
    of the first step. Here gradients are concatenated to one or a few vectors. The
    gradients of all replicas are summed first, so that all replicas compute the same
    update.

    With ``orthogonal``, kernels of convolutions and attention are updated by Muon
    :footcite:p:`Jordan2024`: by the orthogonal matrix nearest to the momentum, scaled
    to a root mean square of 1, times the learning rate. It learns all directions in
    which gradients agree, not only those of large gradients, and keeps no state but the
    momentum.
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        *,
        global_clipnorm: float | None = None,
        base_fan_in: int | None = None,
        unnormalised: list[str] | None = None,
        orthogonal: bool = False,
        averages: list | None = None,
        ema_momentum: float = 0.99,
        gradient_accumulation_steps: int | None = None,
        initial_scale: float | None = None,
        growth_steps: int = 2000,
    ):
        super().__init__(
            learning_rate,
            global_clipnorm=global_clipnorm,
            ema_momentum=ema_momentum,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name="adam",
        )
        self.base_fan_in = base_fan_in
        self.unnormalised = unnormalised
        self.orthogonal = orthogonal
        self.initial_scale = initial_scale
        self.growth_steps = growth_steps
        # A list, so that Keras tracks them as variables of the optimizer.
        self.averages = list(averages or ())
        if initial_scale:
            # Keras needs the scale before it builds the optimizer.
            start = keras.initializers.Constant(initial_scale)
            self._scale = self.add_variable((), start, name="scale")
            self._finite_steps = self.add_variable((), dtype="int32", name="good")

    def build(self, variables: list):
        """Create the optimizer state."""
        if self.built:
            return
        # Not by setattr: Keras would track them as variables of the optimizer.
        vars(self)["_trainable_variables"] = list(variables)
        # Only TensorFlow optimizers have this attribute.
        strategy = getattr(self, "_distribution_strategy", None)
        with _backend.scope(strategy):
            vars(self)["_groups"] = list(self._create_groups(variables))
        self.built = True

    def _create_groups(self, variables: list):
        """Group weights with the same update rule and rate, and create their state."""
        # Kernels that are updated by Muon come first.
        indices_by_factor: dict[float | None, list] = {None: []}
        for index, weight in enumerate(variables):
            orthogonal = self.orthogonal and _is_kernel(weight)
            share = None if orthogonal else self._rate_factor(weight)
            indices_by_factor.setdefault(share, []).append(index)
        for share, indices in indices_by_factor.items():
            names = ["momentum"] if share is None else ["momentum", "velocity"]
            if self.gradient_accumulation_steps:
                names.append("sum")
            for group in _size_limited_groups(variables, indices):
                weights = [variables[index] for index in group]
                shape = (sum(math.prod(weight.shape) for weight in weights),)
                state = {name: self.add_variable(shape, name=name) for name in names}
                yield _Group(weights, group, **state)

    def scale_loss(self, loss: Tensor):
        """Return the scaled loss, of which Keras takes the gradients."""
        if not self.initial_scale:
            return loss
        return loss * ops.cast(self._scale, loss.dtype)

    def apply(self, grads: list, trainable_variables: list | None = None):
        """Update the weights by their gradients."""
        if not self.built:
            self.build(list(trainable_variables))
        weights = self._trainable_variables
        # Weights that don't affect the loss have no gradient.
        grads = [ops.zeros(w.shape) if g is None else g for g, w in zip(grads, weights)]
        gradients = _backend.sum_of_replicas(
            [_concatenated([grads[i] for i in group.indices]) for group in self._groups]
        )
        if not self.initial_scale:
            self._apply_batch(gradients)
            self._iterations.assign_add(1)
            return
        gradients = [gradient / self._scale for gradient in gradients]
        is_finite = ops.all(
            ops.stack([ops.all(ops.isfinite(vector)) for vector in gradients])
        )
        self._conditionally(
            is_finite, lambda: self._apply_batch(gradients), lambda: None
        )
        self._rescale(is_finite)
        # Skipped steps don't count. Outside of the branch, since replicas synchronise.
        self._iterations.assign_add(ops.cast(is_finite, self._iterations.dtype))

    def _apply_batch(self, gradients: list):
        """Apply the gradients of a batch, and update the averages."""
        if self.gradient_accumulation_steps:
            self._accumulate(gradients)
        else:
            self._step(gradients)
        if self.averages and _backend.is_first_replica():
            self._update_ema()

    def _accumulate(self, gradients: list):
        """Add gradients, and make a step once there are enough batches."""
        sums = [group.sum + vector for group, vector in zip(self._groups, gradients)]
        batches = self.gradient_accumulation_steps

        def step():
            for group in self._groups:
                group.sum.assign(ops.zeros(group.sum.shape))
            self._step([total / batches for total in sums])

        def keep():
            for group, total in zip(self._groups, sums):
                group.sum.assign(total)

        self._conditionally(ops.equal((self._iterations + 1) % batches, 0), step, keep)

    def _conditionally(self, condition: Tensor, change: Callable, otherwise: Callable):
        """Apply one of two updates, depending on a condition."""
        variables = [*self._trainable_variables, *self.variables]
        _backend.conditionally(condition, change, otherwise, variables)

    def _step(self, gradients: list):
        """Update all weights, with clipped gradients."""
        rate = ops.cast(self.learning_rate, "float32")
        clip = 1.0
        if self.global_clipnorm:
            norm = ops.sqrt(sum(map(sum_of_squares, gradients)))
            # NaN where the norm is not finite.
            clip = self.global_clipnorm / ops.maximum(norm, self.global_clipnorm)
        time = ops.cast(self.iterations + 1, "float32")
        unbiased = ops.sqrt(1 - _BETA_2**time) / (1 - _BETA_1**time)
        _backend.run_two_at_a_time(
            partial(self._update_group, group, vector, rate, clip, unbiased)
            for group, vector in zip(self._groups, gradients)
        )

    def _update_group(
        self,
        group: _Group,
        gradient: Tensor,
        rate: Tensor,
        clip: Tensor,
        unbiased: Tensor,
    ):
        """Update the weights of a group, and return the changes."""
        shares = [self._rate_factor(weight) for weight in group.weights]
        rates = {share: rate * share for share in set(shares)}
        shapes = [weight.shape for weight in group.weights]
        # Updated in place: TensorFlow would allocate new memory for assigned values in
        # each step, up to twice as much as needed.
        if group.velocity is None:
            momentum_change, lookahead = _nesterov(
                group.momentum, gradient, clip, 1 - _BETA_1
            )
            matrices = [_matrix_shape(weight) for weight in group.weights]
            updates = _orthogonalised(matrices, lookahead, [rates[s] for s in shares])
            changes = [ops.reshape(x, shape) for x, shape in zip(updates, shapes)]
        else:
            (rate,) = rates.values()
            momentum_change, squares, change = _adam(
                group.momentum,
                gradient,
                clip,
                1 - _BETA_1,
                group.velocity,
                1 - _BETA_2,
                unbiased,
                _EPSILON,
                rate,
            )
            _backend.add_to(group.velocity, squares)
            changes = _split(change, shapes)
        _backend.add_to(group.momentum, momentum_change)
        for weight, change in zip(group.weights, changes):
            _backend.add_to(weight, change)
        return changes

    def _update_ema(self):
        """Update the moving averages (EMA), every few batches."""
        # Short beside the horizon of the average, so that the result hardly changes.
        interval = int(0.04 / (1 - self.ema_momentum) + 0.5)
        interval = max(1, min(interval, MAX_AVERAGING_INTERVAL))
        due = ops.equal(self._iterations % interval, 0)
        # With accumulation, in every batch before the first step.
        due = ops.logical_or(due, ops.equal(self.iterations, 0))
        self._conditionally(due, lambda: self._update_ema_now(interval), lambda: None)

    def _update_ema_now(self, batches: int):
        """Update the moving averages by the weight of `batches` steps."""
        # The average starts at the weights of the first step.
        share = 1 - self.ema_momentum**batches
        share = ops.where(ops.equal(self.iterations, 0), 1.0, share)
        _backend.run_two_at_a_time(
            partial(self._update_group_ema, group, share) for group in self._groups
        )

    def _update_group_ema(self, group: _Group, share: Tensor):
        """Update a group's moving averages, and return the changes."""
        averages = [self.averages[index] for index in group.indices]
        changes = [
            _change_towards(average, weight, share)
            for average, weight in zip(averages, group.weights)
        ]
        for average, change in zip(averages, changes):
            _backend.add_to(average, change)
        return changes

    def _rate_factor(self, weight: keras.Variable):
        """Return the factor of the learning rate for a weight, by its fan-in."""
        if not self.base_fan_in:
            return 1.0
        fan_in, _ = _matrix_shape(weight) if _is_kernel(weight) else (1, 1)
        share = min(1.0, self.base_fan_in / fan_in)
        if self.unnormalised is None or weight.path in self.unnormalised:
            return share
        return math.sqrt(share)

    def _rescale(self, is_finite: Tensor):
        """Halve the loss scale after an overflow; double it after `growth_steps`."""
        count = ops.where(is_finite, self._finite_steps + 1, 0)
        grows = count == self.growth_steps
        factor = ops.where(is_finite, ops.where(grows, 2.0, 1.0), 0.5)
        self._scale.assign(self._scale * factor)
        self._finite_steps.assign(ops.where(grows, 0, count))

    def get_config(self):
        """Return the arguments of the constructor, except the averages."""
        config = super().get_config()
        names = inspect.signature(FlatAdam.__init__).parameters.keys()
        return {
            name: config[name] if name in config else getattr(self, name)
            for name in names - {"self", "averages"}
        }


def _concatenated(tensors: list):
    """Flatten and concatenate tensors."""
    # Most have one axis already; needless operations take time to trace.
    return ops.concatenate(
        [t if len(t.shape) == 1 else ops.reshape(t, (-1,)) for t in tensors]
    )


def _split(vector: Tensor, shapes: list):
    """Split a vector into tensors of these shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = ops.split(vector, ends.tolist())  # the part after the last end is empty
    return [
        part if len(shape) == 1 else ops.reshape(part, shape)
        for part, shape in zip(parts, shapes)
    ]


def _is_kernel(weight: keras.Variable):
    """Return whether a weight is the kernel of a convolution or of attention."""
    # Kernels have at least three axes; biases and embedding tables have fewer.
    return len(weight.shape) > 2


def _matrix_shape(weight: keras.Variable):
    """Return the number of inputs and outputs of a kernel."""
    # Attention projects to (heads, size), and back from it.
    projects = weight.path.split("/")[-2:-1] in (["query"], ["key"], ["value"])
    inputs = math.prod(weight.shape[: 1 if projects else -1])
    return inputs, math.prod(weight.shape) // inputs


def _size_limited_groups(weights: list, indices: list[int]):
    """Divide the indices of weights into groups of limited total size."""
    groups, size = [], MAX_GROUP_SIZE
    for index in indices:
        size += math.prod(weights[index].shape)
        if size > MAX_GROUP_SIZE:
            groups.append([])
            size = math.prod(weights[index].shape)
        groups[-1].append(index)
    return groups


def _change_towards(value: Tensor, target: Tensor, share: Tensor):
    """Return the change that moves a value a share of the way to a target."""
    return (target - value) * share


@fused
def _nesterov(momentum: Tensor, gradient: Tensor, clip: Tensor, share: Tensor):
    """Return the change of the momentum, and the Nesterov momentum."""
    gradient = gradient * clip
    change = _change_towards(momentum, gradient, share)
    momentum = momentum + change
    return change, momentum + _change_towards(momentum, gradient, share)


@fused
def _adam(
    momentum: Tensor,
    gradient: Tensor,
    clip: Tensor,
    share: Tensor,
    squares: Tensor,
    of_squares: float,
    unbiased: Tensor,
    epsilon: float,
    rate: Tensor,
):
    """Return the changes of the two moments, and of the weights."""
    gradient = gradient * clip
    change = _change_towards(momentum, gradient, share)
    squared = _change_towards(squares, ops.square(gradient), of_squares)
    direction = (momentum + change) * unbiased
    return change, squared, direction * -rate / (ops.sqrt(squares + squared) + epsilon)


def _orthogonalised(shapes: list, vector: Tensor, rates: list):
    """Return updates of kernels: the orthogonal matrices nearest to those in a vector.

    Shapes are (inputs, outputs). A matrix M with more rows than columns maps to
    M (M' M + e)^(-1/2) with a small e, others to (M M' + e)^(-1/2) M. Newton-Schulz
    iterations compute the roots of all matrices of one size together, so that each
    kernel takes only two large products.
    """
    matrices, roots = _split(vector, shapes), {}
    for size in sorted(set(map(min, shapes))):
        same_size = [i for i, shape in enumerate(shapes) if min(shape) == size]
        squares = ops.stack([_gram_matrix(matrices[i]) for i in same_size])
        roots |= zip(same_size, ops.unstack(_inverse_roots(squares), len(same_size)))
    return [
        _orthogonal(matrix, roots[i], -rate)
        for i, (matrix, rate) in enumerate(zip(matrices, rates, strict=True))
    ]


@cached_trace
def _gram_matrix(matrix: Tensor):
    """Return the smaller Gram matrix of a matrix."""
    rows, columns = matrix.shape
    transposed = ops.transpose(matrix)
    return matrix @ transposed if rows < columns else transposed @ matrix


@cached_trace
def _orthogonal(matrix: Tensor, root: Tensor, rate: Tensor):
    """Return an orthogonal matrix whose entries have a root mean square of `rate`."""
    rows, columns = matrix.shape
    # Scale the root, which is smaller than the matrix.
    root = root * (rate * math.sqrt(max(rows, columns)))
    return root @ matrix if rows < columns else matrix @ root


@cached_trace
def _inverse_roots(squares: Tensor):
    """Return approximate inverse square roots of positive semidefinite matrices."""
    size = squares.shape[-1]
    identity = ops.convert_to_tensor(np.eye(size, dtype="float32"))
    # Normalised by the Frobenius norm, singular values are at most 1.
    powers = ops.sum(squares * identity, (-2, -1), keepdims=True)
    scales = ops.rsqrt(powers + 1e-30)
    squares = squares * scales**2 + identity * (_DAMPING / size)
    roots = scales
    for number, (a, b, c) in enumerate(_NEWTON_SCHULZ):
        factor = a * identity + b * squares + c * (squares @ squares)
        roots = roots @ factor if number else roots * factor
        if number < len(_NEWTON_SCHULZ) - 1:
            squares = factor @ squares @ factor
    return roots
