"""What both estimators share: parameters by their names, and copies."""

import inspect

from dipy_ldm.validation import InputError


class Estimator:
    """An estimator whose parameters are the arguments of its constructor.

    As those of scikit-learn, which can clone it. Of one that is fitted, pickles and
    copies hold what a model file does: networks are built anew where they are read.
    """

    def get_params(self, deep=True):
        """Return the parameters.

        Parameters
        ----------
        deep : bool
            With those of parameters that are estimators, as ``name__parameter``.

        Returns
        -------
        dict
            Parameters by their names.
        """
        names = list(inspect.signature(type(self)).parameters)
        params = {name: getattr(self, name) for name in names}
        nested = {
            f"{name}__{inner}": value
            for name, estimator in params.items()
            if deep and isinstance(estimator, Estimator)
            for inner, value in estimator.get_params().items()
        }
        return params | nested

    def set_params(self, **params):
        """Change parameters; what is fitted stays as it is until the next fit.

        Parameters
        ----------
        **params
            As of :meth:`get_params`.

        Returns
        -------
        Estimator
            The estimator itself.

        Raises
        ------
        InputError
            If there is no such parameter.
        """
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

    def _check_fitted(self):
        if not self._is_fitted():
            name = type(self).__name__
            raise InputError(
                f"this {name} is not fitted; call fit(images) or {name}.load(path) "
                "first."
            )

    def __getstate__(self):
        """Return the parameters and, if it is fitted, what a model file holds."""
        fitted = self._is_fitted() and (self.to_tensors(), self.to_document())
        return {"parameters": self.get_params(deep=False), "fitted": fitted}

    def __setstate__(self, state):
        """Build what :meth:`__getstate__` told of."""
        self.__init__(**state["parameters"])
        if state["fitted"]:
            self._restore(*state["fitted"])
