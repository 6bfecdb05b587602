"""All that can be told of images by looking at every one of them."""

import numpy as np

from dipy_ldm.checking import _outliers as outliers, _similarity as likeness
from dipy_ldm.checking._findings import Finding, grey, robust_scores
from dipy_ldm.checking._pictures import Gallery
from dipy_ldm.checking._reading import Material


def check_images(material: Material, verbose: bool = False) -> list[Finding]:
    """Look at every image."""
    brightness = outliers.measure_brightness(material.images, verbose)
    if material.affine is None:
        return [*_of_images(material, brightness), _only_volumes()]
    small = likeness.cubes(material.images, material.affine, verbose)
    names, subjects = material.names, material.subjects
    show = Gallery(material.images, material.affine, _usual(small))
    return [
        outliers.check_grid(brightness, material.affine),
        outliers.check_background(brightness, of_volumes=True),
        likeness.check_orientation(small, names, show),
        likeness.check_duplicates(small, names, subjects, show),
        outliers.check_intensities(brightness, names, show),
        outliers.check_shapes(small, names, show),
    ]


def _usual(small):
    """Return the number of the volume that is most like the median."""
    median = likeness.unit_vectors(np.median(small, axis=0)[None])[0]
    return int((likeness.unit_vectors(small) @ median).argmax())


def _of_images(material, brightness):
    """Judge images of two dimensions, of which no place is the same for all."""
    scores = robust_scores(brightness.figures, 0.01)
    usual = int(np.abs(scores).max(axis=1).argmin())
    show = Gallery(material.images, None, usual)
    return [
        outliers.check_grid(brightness, None),
        outliers.check_intensities(brightness, material.names, show),
        outliers.check_equal_images(material.images, material.names),
    ]


def _only_volumes():
    return grey(
        "orientation and shape", "Not looked at: these are told of volumes alone."
    )
