"""Configuration of Sphinx; ``make doc`` builds into doc/_build/html."""

from pathlib import Path
import re
import sys
import urllib.request
import warnings

from matplotlib.sphinxext.plot_directive import PlotDirective
from sphinx.ext.autosummary import Autosummary

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

import dipy_ldm
from dipy_ldm.workflows._launch import quiet_start

with quiet_start():
    import tensorflow as tf

    # The example of two replicas lets the processor pose as two devices. TensorFlow
    # must be told before it is first used, and all examples run in this process.
    (processor,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(processor, two)

project = "dipy_ldm"
author = "dipy_ldm developers"
copyright = author  # noqa: A001
version = release = dipy_ldm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    # Ours, in doc/extensions:
    "session",
    "workflow",
]
exclude_patterns = ["_build", "commands/ran", "decisions", "examples"]
templates_path = ["_templates"]
default_role = "code"
smartquotes = False  # they would bend the quotes of code in types

# -- Reference of the functions ----------------------------------------------------

toc_object_entries_show_parents = "hide"
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
bibtex_bibfiles = ["references.bib"]


class Summaries(Autosummary):
    """Tables of summaries without citations, which have no footnotes to refer to."""

    def get_items(self, names):
        """List name, signature, summary and full name of what is documented."""
        return [
            (name, signature, re.sub(" *:footcite:p:`.*?`", "", summary), full_name)
            for name, signature, summary, full_name in super().get_items(names)
        ]


def skip_fields(app, what, name, obj, skip, options):
    """Leave out the fields of named tuples, which "Alias for field number 0" says."""
    # None leaves the decision to Sphinx, which skips what is private.
    return True if type(obj).__name__ == "_tuplegetter" else None


# -- Links to other documentation, where it can be reached -------------------------

OTHERS = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "dipy": "https://docs.dipy.org/stable/",
    "nibabel": "https://nipy.org/nibabel/",
    "keras": "https://keras.io/api/",
}


def reachable(url):
    """Say whether there is an inventory, so that builds without a network are clean."""
    try:
        with urllib.request.urlopen(f"{url}objects.inv", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


intersphinx_mapping = {
    name: (url, None) for name, url in OTHERS.items() if reachable(url)
}
# Links to other places are not ours to keep whole.
linkcheck_ignore = ["https?://"]

# -- Gallery -----------------------------------------------------------------------

warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "ignore_pattern": "virtual_cohort|label_",
    "within_subsection_order": "reading_order.ReadingOrder",
    "abort_on_example_error": True,
    "capture_repr": ("_repr_html_",),
    "download_all_examples": False,
    "image_scrapers": ("matplotlib", "figures.show_last_figure"),
    "image_srcset": ["2x"],
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
}

# -- Figures of the guide, drawn by the scripts in doc/figures ----------------------

plot_formats = [("png", 130)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = False


class LeftOut(PlotDirective):
    """A figure that is not drawn."""

    def run(self):
        """Show nothing."""
        return []


def leave_out_figures(app, config):
    """Draw no figures either where the examples are not to be run."""
    # A word by default, a number on the command line.
    if str(config.plot_gallery) == "0":
        app.add_directive("plot", LeftOut, override=True)


# -- Look --------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = f"dipy_ldm {version}"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_static_path = ["_static"]
html_css_files = ["dipy_ldm.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "dipy_ldm"},
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
# One page has no use for a list of its chapters.
html_sidebars: dict[str, list] = {"index": [], "search": []}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"


def setup(app):
    """Connect what is defined above."""
    app.add_directive("autosummary", Summaries, override=True)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("config-inited", leave_out_figures)
