"""What both estimators share: parameters by their names, files, and copies."""

from collections.abc import Callable, Sequence
from functools import wraps
import inspect
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm import _serialization as persistence, presets
from dipy_ldm._utils.checks import InputError, plain
from dipy_ldm.nn import building


def by_kind(method: Callable) -> Callable:
    """Let parameters that are None be those that suit images or volumes, for a call.

    The method's first argument must be the images, or their shape.
    """

    @wraps(method)
    def call(self, images, *args, **options):
        rank = (len(images) if isinstance(images, tuple) else np.ndim(images)) - 2
        usual = presets.of_rank(rank)
        left = [name for name in self._by_kind if getattr(self, name) is None]
        for name in left:
            setattr(self, name, getattr(usual, self._by_kind[name]))
        try:
            return method(self, images, *args, **options)
        finally:
            for name in left:
                setattr(self, name, None)

    return call


class Entry(NamedTuple):
    """Something that an estimator has learnt, and how a document says it."""

    name: str
    attribute: str
    read: Callable
    write: Callable = plain


class Estimator:
    """An estimator whose parameters are the arguments of its constructor.

    As those of scikit-learn, which can clone it. Of one that is fitted, pickles and
    copies hold what a model file does: networks are built anew where they are read.

    A class says of which kind its files are (``_kind``), which entries they have
    (``_entries``) and which of its networks (``_networks()``), and how these are built
    (``_build()``) once all entries are there.
    """

    widths: Sequence[int] | None
    # Parameters of which None is for what suits the data, and their presets.
    _by_kind: dict[str, str] = {}
    # The parameters of the last fit: they may have been changed since.
    _learnt_with: dict | None = None
    _kind: str
    _entries: tuple[Entry, ...]
    # What a class must have.
    _networks: Callable[[], list[tuple[str, Any]]]
    _build: Callable[[], None]
    _is_fitted: Callable[[], bool]
    _check_saved: Callable

    def hyperparameters(self) -> dict:
        """Say the parameters as JSON can, but for those that are estimators."""
        chosen = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if not isinstance(value, Estimator)
        }
        if self.widths is not None:
            chosen["widths"] = np.atleast_1d(self.widths)
        return plain(chosen)

    def _described(self):
        """Say the parameters of what is fitted or, if nothing is, of the next fit."""
        return self._learnt_with or self.hyperparameters()

    def get_params(self, deep: bool = True) -> dict:
        """Return the parameters."""
        names = list(inspect.signature(type(self)).parameters)
        params = {name: getattr(self, name) for name in names}
        nested = {
            f"{name}__{inner}": value
            for name, estimator in params.items()
            if deep and isinstance(estimator, Estimator)
            for inner, value in estimator.get_params().items()
        }
        return params | nested

    def set_params(self, **params) -> Self:
        """Change parameters; what is fitted stays as it is until the next fit."""
        known = self.get_params(deep=False)
        for name, value in params.items():
            outer, _, inner = name.partition("__")
            nested = known.get(outer)
            if name in known:
                setattr(self, name, value)
            elif inner and isinstance(nested, Estimator):
                nested.set_params(**{inner: value})
            else:
                raise InputError(
                    f"{type(self).__name__} has no parameter {name!r}; choose one of "
                    f"{', '.join(known)}."
                )
        return self

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one file."""
        persistence.save(path, self._kind, self.to_tensors(), self.to_document())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote."""
        # What is wrong with Keras is not wrong with the file.
        building.check_keras()
        return cls.from_saved(*persistence.load(path, cls._kind, cls._check_saved))

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Name the weights, as they are saved."""
        self._check_fitted()
        return self._tensors()

    def to_document(self) -> dict:
        """Say all but the weights, as JSON can."""
        self._check_fitted()
        return self._document()

    @classmethod
    def from_saved(cls, tensors: dict[str, np.ndarray], document: dict) -> Self:
        """Build the fitted estimator from what was saved."""
        return cls._planned(tensors, document)._restore(tensors, document)

    @classmethod
    def _planned(cls, tensors, document):
        """Make an estimator that is not fitted yet, of the parameters that were."""
        return cls(**document[cls._kind])

    def _alike(self, document):
        """Make one that is not fitted either, of the parameters of a document."""
        return type(self)(**document[self._kind])

    def _tensors(self):
        tensors: dict[str, np.ndarray] = {}
        for name, network in self._networks():
            tensors |= persistence.weights(network, name)
        return tensors

    def _document(self):
        learnt = {e.name: e.write(getattr(self, e.attribute)) for e in self._entries}
        return {self._kind: self._described()} | learnt

    def _restore(self, tensors, document):
        """Become what was saved, whatever the parameters of the next fit are."""
        self._learnt_with = self._alike(document).hyperparameters()
        self._describe(document)
        self._build()
        for name, network in self._networks():
            persistence.set_weights(network, name, tensors)
        return self

    def _describe(self, document):
        """Take all but the weights from what was saved."""
        for entry in self._entries:
            setattr(self, entry.attribute, entry.read(document.get(entry.name)))
        return self

    def _check_fitted(self):
        if not self._is_fitted():
            name = type(self).__name__
            raise InputError(
                f"this {name} is not fitted; call fit(images) or {name}.load(path) "
                "first."
            )

    def _as_it_is(self):
        """Copy the estimator but not its networks, since another fit makes new ones."""
        copy = type(self).__new__(type(self))
        vars(copy).update(vars(self))
        return copy

    def __getstate__(self):
        """Return the parameters and, if it is fitted, what a model file holds."""
        fitted = self._is_fitted() and (self.to_tensors(), self.to_document())
        return {"parameters": self.get_params(deep=False), "fitted": fitted}

    def __setstate__(self, state):
        """Build what :meth:`__getstate__` told of."""
        type(self).__init__(self, **state["parameters"])
        if state["fitted"]:
            self._restore(*state["fitted"])
