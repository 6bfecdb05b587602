"""The optimizer of both stages: Adam and Muon, on many weights as one vector."""

from functools import partial
import inspect
import math
from typing import Any, NamedTuple

import keras
from keras import ops
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._backend.fusion import cached_trace, fused, sum_of_squares

# Weights that are changed as one vector: what lives meanwhile is several times as large
# as they are. With 0 each weight is changed alone, as by Keras' optimizers.
MAX_GROUP_SIZE = 2**22

# Of Adam, as Keras has them: of both moments, and what is added to roots.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7

# What takes singular values between 0.01 and 1 to about 1 in few rounds: of a value s,
# each makes a s + b s^3 + c s^5. By these it is within 0.33 of 1, and rounding grows
# eightfold. Others come to within 0.27, but take the largest values down to 0.08 on the
# way, by which rounding grows a thousandfold.
_NEWTON_SCHULZ = (
    (5.2509, -12.1041, 7.3445),
    (3.9194, -5.5138, 2.0506),
    (3.2046, -3.1869, 1.0079),
)
# Batches after which weights are averaged, which passes over all of them: at most. With
# 1 they are averaged after each, as by Keras' optimizers.
MAX_AVERAGING_INTERVAL = 4
# Of the mean square of singular values, what is added to each: in directions that have
# next to none of the gradient, rounding would become as large as all the rest.
_DAMPING = 0.03


class _Group(NamedTuple):
    """Weights that are updated as one vector, and their optimizer state.

    ``places`` are theirs among all weights; without a ``velocity``, they are kernels
    that change by orthogonal matrices.
    """

    weights: list
    places: list
    momentum: Any
    velocity: Any = None
    sum: Any = None


@keras.saving.register_keras_serializable("dipy_ldm")
class FlatAdam(keras.optimizers.Optimizer):
    """Adam :footcite:p:`Kingma2015` that works on many weights at once.

    To the same as ``keras.optimizers.Adam``. Keras' own takes dozens of operations for
    each weight of a network, and TensorFlow as much time to trace and to optimise them
    as for all the rest of the first step; here the gradients are joined to one vector
    first, or to a few where there are many, one after the other. The gradients of all
    replicas are summed before anything is done with them: the replicas go on as if each
    of them were alone, and come to the same.

    If asked to, the kernels of convolutions and of attention change as by Muon
    :footcite:p:`Jordan2024` instead: by the orthogonal matrix that is next to the
    momentum, of which each entry is 1 in the mean of squares, times the rate. All
    directions are learnt in which gradients agree, not only those in which they are
    large, and nothing but the momentum is kept of these weights.
    """

    def __init__(
        self,
        learning_rate=0.001,
        *,
        global_clipnorm=None,
        base_fan_in=None,
        unnormalised=None,
        orthogonal=False,
        averages=None,
        ema_momentum=0.99,
        gradient_accumulation_steps=None,
        initial_scale=None,
        growth_steps=2000,
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
        # By which Keras counts them among what the optimizer changes.
        self.averages = list(averages or ())
        if initial_scale:
            # Which Keras asks for before it asks for anything else.
            start = keras.initializers.Constant(initial_scale)
            self._scale = self.add_variable((), start, name="scale")
            self._good = self.add_variable((), dtype="int32", name="good")

    def build(self, variables):
        """Create the optimizer state."""
        if self.built:
            return
        # Keras would take them for the optimizer's own if they were set as usual.
        vars(self)["_trainable_variables"] = list(variables)
        # TensorFlow's alone have one.
        strategy = getattr(self, "_distribution_strategy", None)
        with _backend.scope(strategy):
            vars(self)["_groups"] = list(self._make_groups(variables))
        self.built = True

    def _make_groups(self, variables):
        """Divide weights into groups that are changed alike, and make their state."""
        # Kernels that change by orthogonal matrices come first.
        alike: dict[float | None, list] = {None: []}
        for place, weight in enumerate(variables):
            orthogonal = self.orthogonal and _is_kernel(weight)
            share = None if orthogonal else self._share(weight)
            alike.setdefault(share, []).append(place)
        for share, places in alike.items():
            names = ["momentum"] if share is None else ["momentum", "velocity"]
            if self.gradient_accumulation_steps:
                names.append("sum")
            for group in _grouped(variables, places):
                weights = [variables[place] for place in group]
                shape = (sum(math.prod(weight.shape) for weight in weights),)
                state = {name: self.add_variable(shape, name=name) for name in names}
                yield _Group(weights, group, **state)

    def scale_loss(self, loss):
        """Multiply the loss, as Keras asks before it takes the gradients."""
        if not self.initial_scale:
            return loss
        return loss * ops.cast(self._scale, loss.dtype)

    def apply(self, grads, trainable_variables=None):
        """Change the weights by their gradients."""
        if not self.built:
            self.build(list(trainable_variables))
        weights = self._trainable_variables
        variables = weights if trainable_variables is None else trainable_variables
        if list(map(id, variables)) != list(map(id, weights)):
            raise ValueError("the weights are not those that the optimizer is for.")
        # What has no part in the loss has no gradient.
        grads = [ops.zeros(w.shape) if g is None else g for g, w in zip(grads, weights)]
        gradients = _backend.sum_of_replicas(
            [_joined([grads[i] for i in group.places]) for group in self._groups]
        )
        if not self.initial_scale:
            self._learn(gradients)
            self._iterations.assign_add(1)
            return
        gradients = [gradient / self._scale for gradient in gradients]
        good = ops.all(
            ops.stack([ops.all(ops.isfinite(vector)) for vector in gradients])
        )
        self._if(good, lambda: self._learn(gradients), lambda: None)
        self._rescale(good)
        # As if what is left out had not been. Replicas meet here: not in a branch.
        self._iterations.assign_add(ops.cast(good, self._iterations.dtype))

    def _learn(self, gradients):
        """Learn from all gradients of a batch."""
        if self.gradient_accumulation_steps:
            self._accumulate(gradients)
        else:
            self._step(gradients)
        if self.averages and _backend.is_first_replica():
            self._update_ema()

    def _accumulate(self, gradients):
        """Make a step if there are gradients enough for it, or keep them."""
        sums = [group.sum + vector for group, vector in zip(self._groups, gradients)]
        batches = self.gradient_accumulation_steps

        def step():
            for group in self._groups:
                group.sum.assign(ops.zeros(group.sum.shape))
            self._step([total / batches for total in sums])

        def keep():
            for group, total in zip(self._groups, sums):
                group.sum.assign(total)

        self._if(ops.equal((self._iterations + 1) % batches, 0), step, keep)

    def _if(self, condition, change, otherwise):
        """Apply one of two updates, by a condition."""
        variables = [*self._trainable_variables, *self.variables]
        _backend.conditionally(condition, change, otherwise, variables)

    def _step(self, gradients):
        """Make a step."""
        rate = ops.cast(self.learning_rate, "float32")
        clip = 1.0
        if self.global_clipnorm:
            norm = ops.sqrt(sum(map(sum_of_squares, gradients)))
            # NaN where the norm is not finite.
            clip = self.global_clipnorm / ops.maximum(norm, self.global_clipnorm)
        time = ops.cast(self.iterations + 1, "float32")
        unbiased = ops.sqrt(1 - _BETA_2**time) / (1 - _BETA_1**time)
        _backend.run_two_at_a_time(
            partial(self._change, group, vector, rate, clip, unbiased)
            for group, vector in zip(self._groups, gradients)
        )

    def _change(self, group, gradient, rate, clip, unbiased):
        """Change the weights of a group, and return by how much."""
        shares = [self._share(weight) for weight in group.weights]
        each = {share: rate * share for share in set(shares)}
        shapes = [weight.shape for weight in group.weights]
        moment = group.momentum, gradient, clip, 1 - _BETA_1
        # All is added to where it is. TensorFlow's pool would give what is assigned
        # other pieces of memory in each step, up to twice as large as they need be.
        if group.velocity is None:
            moved, ahead = _nesterov(*moment)
            matrices = [_matrix(weight) for weight in group.weights]
            turned = _orthogonalised(matrices, ahead, [each[share] for share in shares])
            changes = [ops.reshape(of, shape) for of, shape in zip(turned, shapes)]
        else:
            (rate,) = each.values()
            further = group.velocity, 1 - _BETA_2, unbiased, _EPSILON, rate
            moved, squares, change = _adam(*moment, *further)
            _backend.add_to(group.velocity, squares)
            changes = _parts(change, shapes)
        _backend.add_to(group.momentum, moved)
        for weight, change in zip(group.weights, changes):
            _backend.add_to(weight, change)
        return changes

    def _update_ema(self):
        """Update the moving averages (EMA), every few batches."""
        # Few of those over which the average goes, so that it is the same.
        interval = int(0.04 / (1 - self.ema_momentum) + 0.5)
        interval = max(1, min(interval, MAX_AVERAGING_INTERVAL))
        due = ops.equal(self._iterations % interval, 0)
        # Before the first step, however many batches it is of.
        due = ops.logical_or(due, ops.equal(self.iterations, 0))
        self._if(due, lambda: self._average(interval), lambda: None)

    def _average(self, batches):
        """Update the moving averages as for so many batches."""
        # The first step's weights are their own average.
        share = 1 - self.ema_momentum**batches
        share = ops.where(ops.equal(self.iterations, 0), 1.0, share)
        _backend.run_two_at_a_time(
            partial(self._follow_weights, group, share) for group in self._groups
        )

    def _follow_weights(self, group, share):
        """Update a group's moving averages, and return the changes."""
        averages = [self.averages[place] for place in group.places]
        changes = [
            _nearer(average, weight, share)
            for average, weight in zip(averages, group.weights)
        ]
        for average, change in zip(averages, changes):
            _backend.add_to(average, change)
        return changes

    def _share(self, weight):
        """Return how much of the rate a weight has."""
        if not self.base_fan_in:
            return 1.0
        fan_in, _ = _matrix(weight) if _is_kernel(weight) else (1, 1)
        share = min(1.0, self.base_fan_in / fan_in)
        if self.unnormalised is None or weight.path in self.unnormalised:
            return share
        return math.sqrt(share)

    def _rescale(self, good):
        """Halve the scale of the loss, or double it now and then."""
        count = ops.where(good, self._good + 1, 0)
        grows = count == self.growth_steps
        factor = ops.where(good, ops.where(grows, 2.0, 1.0), 0.5)
        self._scale.assign(self._scale * factor)
        self._good.assign(ops.where(grows, 0, count))

    def get_config(self):
        """Return the arguments of the constructor, but for the averages."""
        config = super().get_config()
        names = inspect.signature(FlatAdam.__init__).parameters.keys()
        return {
            name: config[name] if name in config else getattr(self, name)
            for name in names - {"self", "averages"}
        }


def _joined(tensors):
    """Join tensors, whatever their shapes, to one vector."""
    # Most have one axis already, and what need not be done takes no time to trace.
    return ops.concatenate(
        [t if len(t.shape) == 1 else ops.reshape(t, (-1,)) for t in tensors]
    )


def _parts(vector, shapes):
    """Cut a vector into tensors of these shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = ops.split(vector, ends.tolist())  # and nothing after the last
    return [
        part if len(shape) == 1 else ops.reshape(part, shape)
        for part, shape in zip(parts, shapes)
    ]


def _is_kernel(weight):
    """Return whether a weight is the kernel of a convolution or of attention."""
    # Which have three axes and more; biases and tables have fewer.
    return len(weight.shape) > 2


def _matrix(weight):
    """Return how many inputs and outputs a kernel has."""
    # Attention projects a position to (heads, each), and not from there.
    projects = weight.path.split("/")[-2:-1] in (["query"], ["key"], ["value"])
    inputs = math.prod(weight.shape[: 1 if projects else -1])
    return inputs, math.prod(weight.shape) // inputs


def _grouped(weights, places):
    """Divide the places of weights into groups of weights that are not too large."""
    groups, size = [], MAX_GROUP_SIZE
    for place in places:
        size += math.prod(weights[place].shape)
        if size > MAX_GROUP_SIZE:
            groups.append([])
            size = math.prod(weights[place].shape)
        groups[-1].append(place)
    return groups


def _nearer(value, aim, share):
    """Return the change by which a value goes a share of the way."""
    return (aim - value) * share


@fused
def _nesterov(momentum, gradient, clip, share):
    """Return the change of the momentum, and its Nesterov look-ahead."""
    gradient = gradient * clip
    change = _nearer(momentum, gradient, share)
    momentum = momentum + change
    return change, momentum + _nearer(momentum, gradient, share)


@fused
def _adam(
    momentum, gradient, clip, share, squares, of_squares, unbiased, epsilon, rate
):
    """Return the changes of the two moments, and of the weights."""
    gradient = gradient * clip
    moved = _nearer(momentum, gradient, share)
    squared = _nearer(squares, ops.square(gradient), of_squares)
    direction = (momentum + moved) * unbiased
    return moved, squared, direction * -rate / (ops.sqrt(squares + squared) + epsilon)


def _orthogonalised(shapes, vector, rates):
    """Return changes of kernels: the orthogonal matrices next to those in a vector.

    Kernels have the shapes of matrices, inputs and outputs. Of a matrix M that has more
    rows than columns that is M (M' M + e)^(-1/2), with a small e, and
    (M M' + e)^(-1/2) M of others. These roots are found by Newton-Schulz iterations of
    small matrices, all that are of one size together, so that there are two large
    products of each kernel and no more.
    """
    matrices, roots = _parts(vector, shapes), {}
    for size in sorted(set(map(min, shapes))):
        alike = [i for i, shape in enumerate(shapes) if min(shape) == size]
        squares = ops.stack([_square(matrices[i]) for i in alike])
        roots |= zip(alike, ops.unstack(_inverse_roots(squares), len(alike)))
    return [
        _orthogonal(matrix, roots[i], -rate)
        for i, (matrix, rate) in enumerate(zip(matrices, rates, strict=True))
    ]


@cached_trace
def _square(matrix):
    """Multiply a matrix with itself, so that the result is as small as it can be."""
    rows, columns = matrix.shape
    transposed = ops.transpose(matrix)
    return matrix @ transposed if rows < columns else transposed @ matrix


@cached_trace
def _orthogonal(matrix, root, rate):
    """Return an orthogonal matrix with entries of about a rate."""
    rows, columns = matrix.shape
    # The root is the smaller of the two.
    root = root * (rate * math.sqrt(max(rows, columns)))
    return root @ matrix if rows < columns else matrix @ root


@cached_trace
def _inverse_roots(squares):
    """Return the inverse roots of positive semidefinite matrices, nearly."""
    size = squares.shape[-1]
    one = ops.convert_to_tensor(np.eye(size, dtype="float32"))
    # Singular values are at most as large as all of them together, which become 1.
    powers = ops.sum(squares * one, (-2, -1), keepdims=True)
    scales = ops.rsqrt(powers + 1e-30)
    squares = squares * scales**2 + one * (_DAMPING / size)
    roots = scales
    for number, (a, b, c) in enumerate(_NEWTON_SCHULZ):
        factor = a * one + b * squares + c * (squares @ squares)
        roots = roots @ factor if number else roots * factor
        if number < len(_NEWTON_SCHULZ) - 1:
            squares = factor @ squares @ factor
    return roots
