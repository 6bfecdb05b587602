"""Directions as grid indices and as features for networks.

Opposite directions are the same. The index is that of the nearest point of a grid on
the half sphere, in steps of less than 0.1 degrees; the features are even real spherical
harmonics.
"""

import math
from types import ModuleType

import numpy as np
from numpy.polynomial import Legendre, Polynomial
import numpy.typing as npt

from dipy_ldm._utils.types import Tensor

# Polar angles from the pole to the equator, and azimuths; float32 has all indices.
_POLAR, _AZIMUTHS = 2048, 4096
_ORDERS = [(degree, m) for degree in (2, 4) for m in range(-degree, degree + 1)]
# Number of features of each direction.
N_HARMONICS = len(_ORDERS)


def direction_index(direction: npt.ArrayLike) -> float:
    """Return the grid index of the direction of a nonzero vector ``(3,)``."""
    x, y, z = np.asarray(direction, float) / np.linalg.norm(direction)
    # Opposite directions on the equator are the same, too.
    if (z, y, x) < (0, 0, 0):
        x, y, z = -x, -y, -z
    polar = round(math.acos(min(z, 1)) / (math.pi / 2) * (_POLAR - 1))
    azimuth = round(math.atan2(y, x) / (2 * math.pi) * _AZIMUTHS) % _AZIMUTHS
    return float(polar * _AZIMUTHS + azimuth)


def harmonics(numbers: Tensor, ops: ModuleType = np) -> Tensor:
    """Return the even real spherical harmonics ``(n, 14)`` of directions ``(n,)``.

    Each has a mean square of 1 over the sphere. ``ops`` is numpy or ``keras.ops``.
    """
    polar_index = ops.floor(numbers / _AZIMUTHS)
    polar = polar_index * (math.pi / 2 / (_POLAR - 1))
    azimuth = (numbers - polar_index * _AZIMUTHS) * (2 * math.pi / _AZIMUTHS)
    cosine, sine = ops.cos(polar), ops.sin(polar)
    columns = []
    for degree, order in _ORDERS:
        m = abs(order)
        legendre = Legendre.basis(degree).deriv(m).convert(kind=Polynomial)
        values = sum(c * cosine**k for k, c in enumerate(legendre.coef.tolist()))
        wave = ops.sin(m * azimuth) if order < 0 else ops.cos(m * azimuth)
        square = (2 * degree + 1) * (1 + (m > 0)) / math.perm(degree + m, 2 * m)
        columns.append(math.sqrt(square) * sine**m * values * wave)
    return ops.stack(columns, -1)
