"""What all estimators share: parameters by their names, files, and copies."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
import inspect
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

import keras
import numpy as np

from dipy_ldm import _presets, _serialization
from dipy_ldm._utils.checks import InputError, choose, plain
from dipy_ldm.data._sidecars import model_facts
from dipy_ldm.nn import _building as building

Method = TypeVar("Method", bound=Callable)


def show_options(options: type) -> Callable[[Method], Method]:
    """Show each of a method's ``**options`` in its signature, and refuse others.

    Notebooks ask for the signature; type checkers know options by the annotation alone.
    """

    def show(method):
        signature, keyword = inspect.signature(method), inspect.Parameter.KEYWORD_ONLY
        *shown, _ = signature.parameters.values()
        shown += [
            inspect.Parameter(name, keyword, default=..., annotation=kind)
            for name, kind in options.__annotations__.items()
        ]
        names = {parameter.name: None for parameter in shown[1:]}  # without self

        @wraps(method)
        def checked(self, *args, **options):
            for name in options:
                choose("option", name, names)
            return method(self, *args, **options)

        cast(Any, checked).__signature__ = signature.replace(parameters=shown)
        return checked

    return show


def keeps_earlier_fit(fit: Method) -> Method:
    """Let an estimator be what it was before a fit that ends before its first step."""

    @wraps(fit)
    def fit_or_restore(self, *args, **options):
        before = dict(vars(self))
        try:
            return fit(self, *args, **options)
        except BaseException:
            seconds = vars(self).get("step_seconds_")
            began = seconds is not before.get("step_seconds_") and any(seconds.values())
            if not began:
                vars(self).clear()
                vars(self).update(before)
            raise

    return cast(Method, fit_or_restore)


def as_saved(value: object) -> object:
    """Return a record, or what else JSON can have, as a document has it."""
    return plain(value._asdict() if hasattr(value, "_asdict") else value)


class Entry(NamedTuple):
    """A fitted attribute, and how a document has it."""

    name: str
    attribute: str
    read: Callable = lambda value: value
    write: Callable = as_saved

    @classmethod
    def of_record(cls, name: str, attribute: str, kind: type) -> Self:
        """Return an entry that has a record of a kind, or null."""
        return cls(name, attribute, lambda saved: saved and kind(**saved))


class Estimator:
    """An estimator whose parameters are the arguments of its constructor.

    As those of scikit-learn, which can clone it. Of one that is fitted, pickles and
    copies hold what a model file does: networks are rebuilt where they are read.
    """

    widths: Sequence[int] | None
    _kind: str
    _entries: tuple[Entry, ...]
    # Parameters of which None is for what suits the data, and their presets.
    _presets: dict[str, str] = {}
    # The parameters of the last fit, of which none is left open.
    _fitted_with: dict = {}
    step_seconds_: dict[str, list[float]]
    history_: dict[str, list]
    fingerprint_: str

    def _networks(self) -> dict[str, keras.Model]:
        """Return the networks of a model file by their names."""
        raise NotImplementedError

    def _build(self) -> None:
        """Build the networks, once all entries are there."""
        raise NotImplementedError

    def _is_fitted(self) -> bool:
        """Return whether a training has ended, or at least a round of it."""
        return hasattr(self, "history_")

    @classmethod
    def _expected_shapes(cls, document: dict, shapes: dict) -> dict[str, tuple]:
        """Return the shapes of a document's tensors, or refuse larger networks."""
        raise NotImplementedError

    def _resolved(self, rank: int, init: Self | None = None) -> dict:
        """Return the parameters of a fit as JSON can have them, but for estimators.

        Those of None are as of what it begins from, or else as suits the data.
        """
        usual = _presets.of_rank(rank)
        chosen = {}
        for name, value in self.get_params(deep=False).items():
            if value is None and name in self._presets:
                value = getattr(usual, self._presets[name])
                value = init._fitted_with[name] if init else value
            if not isinstance(value, Estimator):
                chosen[name] = plain(value)
        if not isinstance(chosen["widths"], list):
            chosen["widths"] = [chosen["widths"]]
        return chosen

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
        names = self.get_params(deep=False)
        # An estimator goes before its own parameters, which are of the new one.
        for name, value in sorted(params.items(), key=lambda item: "__" in item[0]):
            outer, _, inner = name.partition("__")
            nested = names.get(outer)
            if name in names:
                setattr(self, name, value)
                names[name] = value
            elif inner and isinstance(nested, Estimator):
                nested.set_params(**{inner: value})
            else:
                raise InputError(
                    f"{type(self).__name__} has no parameter {name!r}; choose one of "
                    f"{', '.join(names)}."
                )
        return self

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one file."""
        tensors, document = self.to_tensors(), self.to_document()
        _serialization.save(Path(path).expanduser(), self._kind, tensors, document)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : str or Path
            File to read, or the name of a packaged model: ``"mnist"``,
            ``"brains"`` or, of an autoencoder, ``"volumes"``. An autoencoder is also
            read from the file of a whole model.

        Returns
        -------
        Estimator
            Fitted.

        Raises
        ------
        InputError
            If the file is not that of such an estimator.
        """
        # What is wrong with Keras is not wrong with the file.
        building.check_keras()
        return cls.from_saved(*cls._read_file(_serialization.find(path)))

    @classmethod
    def _read_file(cls, path):
        """Read tensors and document of a model file."""
        return _serialization.load(path, cls._kind, cls._expected_shapes)

    @classmethod
    def _read_init(cls, init):
        """Return the fitted estimator that a fit begins from; None for none."""
        if isinstance(init, cls):
            init._check_fitted()
            # A fit may begin from the estimator that it changes.
            return init._snapshot()
        if isinstance(init, str | Path):
            return cls.load(init)
        if init is None:
            return None
        raise InputError(
            f"`init` must be a {cls.__name__} or a file, not a {type(init).__name__}."
        )

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the weights by their names in a model file."""
        self._check_fitted()
        tensors: dict[str, np.ndarray] = {}
        for name, network in self._networks().items():
            tensors |= _serialization.weights(network, name)
        return tensors

    def to_document(self) -> dict:
        """Return all but the weights, as JSON can have it."""
        self._check_fitted()
        entries = {e.name: e.write(getattr(self, e.attribute)) for e in self._entries}
        return {self._kind: self._fitted_with} | entries

    @classmethod
    def from_saved(cls, tensors: dict[str, np.ndarray], document: dict) -> Self:
        """Build the fitted estimator from saved tensors and document."""
        return cls(**document[cls._kind])._restore(tensors, document)

    def _restore(self, tensors, document):
        """Restore the fitted state, whatever the parameters of the next fit are."""
        self._describe(document)
        self._build()
        for name, network in self._networks().items():
            _serialization.set_weights(network, name, tensors)
        return self

    def _describe(self, document):
        """Restore everything but the weights from a document."""
        self._fitted_with = document[self._kind]
        for entry in self._entries:
            setattr(self, entry.attribute, entry.read(document.get(entry.name)))
        return self

    def _check_fitted(self, kind: type[Exception] = InputError):
        """Refuse what is not fitted; of attributes, hasattr looks for another kind."""
        if not self._is_fitted():
            name = type(self).__name__
            raise kind(
                f"this {name} is not fitted; call fit(images) or {name}.load(path) "
                "first."
            )

    def _facts(self, n, **options):
        """Describe how each of so many images is made, as sidecars do."""
        fingerprint = _serialization.checksum(self.to_tensors())
        return [model_facts(type(self).__name__, fingerprint)] * n

    def _snapshot(self):
        """Copy the estimator but not its networks, since another fit makes new ones."""
        copy = type(self).__new__(type(self))
        vars(copy).update(vars(self))
        return copy

    def __repr__(self) -> str:
        """Return changed parameters and, if it is fitted, a summary."""
        defaults = inspect.signature(type(self)).parameters
        params = self.get_params(deep=False).items()
        changed = [
            f"{name}={repr(value).partition(chr(10))[0]}"
            for name, value in params
            if repr(value) != repr(defaults[name].default)
        ]
        lines = [f"{type(self).__name__}({', '.join(changed)})"]
        if self._is_fitted():
            lines += [f"  {name}: {value}" for name, value in self._summary().items()]
        return "\n".join(lines)

    def _repr_html_(self):
        """Return the same as a table for notebooks, with the course of the training."""
        head, *_ = repr(self).splitlines()
        if not self._is_fitted():
            return f"<p><code>{escape(head)}</code>, not fitted</p>"
        from dipy_ldm.plots import as_png, plot_history

        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in self._summary().items()
        )
        png = b64encode(as_png(plot_history(self))).decode()
        return (
            f"<p><code>{escape(head)}</code></p><table>{rows}</table>"
            f'<img alt="course of the training" src="data:image/png;base64,{png}">'
        )

    def _summary(self) -> dict[str, str]:
        """Describe what is fitted, and on what."""
        networks, history = self._networks().values(), self.history_
        n_weights = sum(network.count_params() for network in networks)
        rounds = {name: values for name, values in history.items() if values}
        lengths = (("epoch", "g"), ("step", ","))
        length = [
            f"{rounds.pop(n)[-1]:{how}} {n}s" for n, how in lengths if n in rounds
        ]
        # Of the round with the lowest one, the network has the weights.
        losses = rounds.get("val_loss", [])
        best = losses.index(min(losses)) if losses else -1
        figures = [f"{name} {values[best]:.3g}" for name, values in rounds.items()]
        return {
            "weights": f"{n_weights:,}",
            "training": ", ".join(length + figures),
            "fingerprint of the images": self.fingerprint_[:12],
        }

    def __getstate__(self):
        """Return the parameters and, if it is fitted, what a model file holds."""
        fitted = self._is_fitted() and (self.to_tensors(), self.to_document())
        return {"parameters": self.get_params(deep=False), "fitted": fitted}

    def __setstate__(self, state):
        """Build what :meth:`__getstate__` returned."""
        type(self).__init__(self, **state["parameters"])
        if state["fitted"]:
            self._restore(*state["fitted"])
