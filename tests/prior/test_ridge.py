"""Ridge regression: what is said of values that are left out."""

import numpy as np
import numpy.testing as npt

from dipy_ldm.prior._ridge import fit_kernel_ridge


def test_held_out_values_come_from_fits_to_other_subjects(rng):
    rows, wanted = rng.standard_normal((9, 4)), rng.standard_normal(9)
    whose = np.array([0, 1, 1, 2, 0, 3, 3, 3, 4])
    _, _, found = fit_kernel_ridge(rows @ rows.T, wanted, [0.5], whose)
    for one in range(5):
        others = rows[whose != one]
        given = others @ others.T, wanted[whose != one], [0.5], np.arange(len(others))
        shares, offset, _ = fit_kernel_ridge(*given)
        told = rows[whose == one] @ others.T @ shares + offset
        npt.assert_allclose(found[whose == one], told)
