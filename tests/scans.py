"""NIfTI files for the tests that read them."""

import nibabel as nib
import numpy as np


def save(path, data, affine=None):
    data = np.asarray(data, "float32")
    affine = np.eye(4) if affine is None else np.asarray(affine, "float32")
    image = nib.Nifti1Image(data, None)
    image.header.set_sform(affine, 1)
    # Not by way of an image, which would refuse some of them.
    image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(data, None, image.header), path)
