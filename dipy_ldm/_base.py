"""Base class of all estimators: parameters, model files and copies."""

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
from dipy_ldm.data._sidecars import model_metadata
from dipy_ldm.nn import _building as building

Method = TypeVar("Method", bound=Callable)
# Not Self, so that editors complete what `load` returns.
_Loaded = TypeVar("_Loaded", bound="Estimator")


def show_options(options: type) -> Callable[[Method], Method]:
    """Show each of a method's ``**options`` in its signature, and refuse others.

    Notebooks use the signature; type checkers get the options from the annotation.
    """

    def show(method: Callable):
        signature, keyword = inspect.signature(method), inspect.Parameter.KEYWORD_ONLY
        *parameters, _ = signature.parameters.values()
        parameters += [
            inspect.Parameter(name, keyword, default=..., annotation=kind)
            for name, kind in options.__annotations__.items()
        ]
        names = {parameter.name: None for parameter in parameters[1:]}  # without self

        @wraps(method)
        def checked(self, *args, **options):
            for name in options:
                choose("option", name, names)
            return method(self, *args, **options)

        cast(Any, checked).__signature__ = signature.replace(parameters=parameters)
        return checked

    return show


def keeps_earlier_fit(fit: Method) -> Method:
    """Restore the estimator if a fit fails before its first step."""

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
    """Convert a record or other value to JSON types."""
    return plain(value._asdict() if hasattr(value, "_asdict") else value)


class Entry(NamedTuple):
    """A fitted attribute, and its conversion from and to an entry of a document."""

    name: str
    attribute: str
    read: Callable = lambda value: value
    write: Callable = as_saved

    @classmethod
    def of_record(cls, name: str, attribute: str, kind: type) -> Self:
        """Return an entry that holds a record of a kind, or null."""
        return cls(name, attribute, lambda saved: saved and kind(**saved))


class Estimator:
    """An estimator whose parameters are the arguments of its constructor.

    It follows scikit-learn, which can clone it. Pickles and copies of a fitted
    estimator hold what a model file does; networks are rebuilt when they are loaded.
    """

    widths: Sequence[int] | None
    _kind: str
    _entries: tuple[Entry, ...]
    # Parameters whose default, None, depends on the data, and their presets.
    _presets: dict[str, str] = {}
    # The parameters of the last fit, with defaults filled in.
    _fitted_with: dict = {}
    step_seconds_: dict[str, list[float]]
    history_: dict[str, list]
    fingerprint_: str

    def _networks(self) -> dict[str, keras.Model]:
        """Return the networks by their names in a model file."""
        raise NotImplementedError

    def _build(self) -> None:
        """Build the networks, after all entries are set."""
        raise NotImplementedError

    def _is_fitted(self) -> bool:
        """Return whether at least one round of a training has ended."""
        return hasattr(self, "history_")

    @classmethod
    def _expected_shapes(cls, document: dict, shapes: dict) -> dict[str, tuple]:
        """Return the shapes of a document's tensors, or refuse larger networks."""
        raise NotImplementedError

    def _resolved(self, rank: int, init: Self | None = None) -> dict:
        """Return the parameters of a fit as JSON types, without estimators.

        Those of None are taken from `init`, or else are the defaults for the data.
        """
        defaults = _presets.of_rank(rank)
        parameters = {}
        for name, value in self.get_params(deep=False).items():
            if value is None and name in self._presets:
                value = getattr(defaults, self._presets[name])
                value = init._fitted_with[name] if init else value
            if not isinstance(value, Estimator):
                parameters[name] = plain(value)
        if not isinstance(parameters["widths"], list):
            parameters["widths"] = [parameters["widths"]]
        return parameters

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
        """Change parameters; fitted attributes stay until the next fit."""
        names = self.get_params(deep=False)
        # A nested estimator before its parameters, which apply to the new one.
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
                    f"{type(self).__name__} has no parameter {name!r}",
                    f"choose one of {', '.join(names)}",
                )
        return self

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one file."""
        tensors, document = self.to_tensors(), self.to_document()
        _serialization.save(Path(path).expanduser(), self._kind, tensors, document)

    @classmethod
    def load(cls: type[_Loaded], path: str | Path) -> _Loaded:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : str or Path
            File to read, or the name of a packaged model: ``"mnist"``, ``"brains"``
            or, for an autoencoder, ``"volumes"``. An autoencoder is also read from the
            file of a diffusion model.

        Returns
        -------
        Estimator
            The fitted estimator.

        Raises
        ------
        InputError
            If the file holds no such estimator.
        """
        # Before reading, so that a problem of Keras is not blamed on the file.
        building.check_keras()
        return cls.from_saved(*cls._read_file(_serialization.find(path)))

    @classmethod
    def _read_file(cls, path: str | Path):
        """Read tensors and document from a model file."""
        return _serialization.load(path, cls._kind, cls._expected_shapes)

    @classmethod
    def _read_init(cls, init: Self | str | Path | None):
        """Return the fitted estimator to fine-tune, or None."""
        if isinstance(init, cls):
            init._check_fitted()
            # `init` may be the estimator that is being fitted.
            return init._snapshot()
        if isinstance(init, str | Path):
            return cls.load(init)
        if init is None:
            return None
        raise InputError(
            f"`init` must be a {cls.__name__} or a file, not a {type(init).__name__}"
        )

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the weights by their names in a model file."""
        self._check_fitted()
        tensors: dict[str, np.ndarray] = {}
        for name, network in self._networks().items():
            tensors |= _serialization.weights(network, name)
        return tensors

    def to_document(self) -> dict:
        """Return everything but the weights, as JSON types."""
        self._check_fitted()
        entries = {e.name: e.write(getattr(self, e.attribute)) for e in self._entries}
        return {self._kind: self._fitted_with} | entries

    @classmethod
    def from_saved(cls, tensors: dict[str, np.ndarray], document: dict) -> Self:
        """Build the fitted estimator from saved tensors and document."""
        return cls(**document[cls._kind])._restore(tensors, document)

    def _restore(self, tensors: dict[str, np.ndarray], document: dict):
        """Restore the fitted state without changing the parameters."""
        self._restore_attributes(document)
        self._build()
        for name, network in self._networks().items():
            _serialization.set_weights(network, name, tensors)
        return self

    def _restore_attributes(self, document: dict):
        """Restore everything but the weights from a document."""
        self._fitted_with = document[self._kind]
        for entry in self._entries:
            setattr(self, entry.attribute, entry.read(document.get(entry.name)))
        return self

    def _check_fitted(self, kind: type[Exception] = InputError):
        """Raise an error if it is not fitted; `hasattr` expects an AttributeError."""
        if not self._is_fitted():
            name = type(self).__name__
            raise kind(
                f"this {name} is not fitted; call fit(images) or {name}.load(path) "
                "first."
            )

    def _provenance(self, n: int, **options):
        """Return the provenance of each of `n` images, as in sidecars."""
        fingerprint = _serialization.checksum(self.to_tensors())
        return [model_metadata(type(self).__name__, fingerprint)] * n

    def _snapshot(self):
        """Copy the estimator but not its networks, which a new fit replaces."""
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
        """Return the same as a table for notebooks, with training curves."""
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
            f'<img alt="training curves" src="data:image/png;base64,{png}">'
        )

    def _summary(self) -> dict[str, str]:
        """Return a summary of the fitted state."""
        networks, history = self._networks().values(), self.history_
        n_weights = sum(network.count_params() for network in networks)
        rounds = {name: values for name, values in history.items() if values}
        lengths = (("epoch", ".4g"), ("step", ","))
        length = [
            f"{rounds.pop(n)[-1]:{form}} {n}s" for n, form in lengths if n in rounds
        ]
        # Weights are those of the round with the lowest validation loss.
        losses = rounds.get("val_loss", [])
        best = losses.index(min(losses)) if losses else -1
        figures = [f"{name} {values[best]:.3g}" for name, values in rounds.items()]
        return {
            "weights": f"{n_weights:,}",
            "training": ", ".join(length + figures),
            "fingerprint of the images": self.fingerprint_[:12],
        }

    def __getstate__(self):
        """Return the parameters and, if fitted, the contents of a model file."""
        fitted = self._is_fitted() and (self.to_tensors(), self.to_document())
        return {"parameters": self.get_params(deep=False), "fitted": fitted}

    def __setstate__(self, state: dict):
        """Restore the state that :meth:`__getstate__` returned."""
        type(self).__init__(self, **state["parameters"])
        if state["fitted"]:
            self._restore(*state["fitted"])
