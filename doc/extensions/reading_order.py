"""The order in which the gallery shows its examples: the way through the method."""

ORDER = [
    "plot_reconstruct.py",
    "plot_generate.py",
    "plot_conditions.py",
    "plot_denoise.py",
    "plot_latents.py",
    "plot_volumes.py",
    "plot_one_brain.py",
    "plot_tensors.py",
    "plot_few_scans.py",
    "plot_replicas.py",
    "plot_sampler.py",
]


class ReadingOrder:
    """Sort examples by ``ORDER``; those that it does not name come last.

    Parameters
    ----------
    src_dir : str
        Folder of the examples.
    """

    def __init__(self, src_dir):
        self.src_dir = src_dir

    def __call__(self, filename):
        place = ORDER.index(filename) if filename in ORDER else len(ORDER)
        return place, filename
