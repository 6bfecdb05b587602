"""Figures of examples that are not pyplot's, shown as notebooks show them."""

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

DPI = 160


def show_last_figure(block, block_vars, gallery_conf):
    """Show the figure that a block of an example ends with.

    Parameters
    ----------
    block : tuple
        Kind, text and line of the block.
    block_vars : dict
        What the block left: its names, and where pictures go.
    gallery_conf : dict
        Configuration of the gallery.

    Returns
    -------
    str
        reStructuredText that shows the figure; nothing if there is none.
    """
    names = block_vars["example_globals"]
    # The value of the last expression of this block, or of one before.
    figure = names.get("___")
    ours = isinstance(figure, Figure) and not hasattr(figure, "number")
    if not ours or figure is names.get("_shown_figure"):
        return ""
    names["_shown_figure"] = figure
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=DPI)
    return figure_rst([path], gallery_conf["src_dir"])
