"""The same samples with increasing guidance."""

from matplotlib import pyplot as plt
from panels import packaged, show

from dipy_ldm.plots import montage

VALUES = (1, 1.5, 2, 4)


def draw():
    """Draw sixteen samples for each guidance scale."""
    model = packaged()
    figure, axes = plt.subplots(1, len(VALUES), figsize=(11, 3), layout="constrained")
    for ax, guidance in zip(axes, VALUES):
        digits = model.predict(16, guidance=guidance, seed=2)
        show(ax, montage(digits, columns=4), f"guidance {guidance:g}")
