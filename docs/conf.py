"""Sphinx configuration: Markdown pages, an API reference from docstrings, and pages generated from the registry."""

import sys
from pathlib import Path

from astrozoo import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "astrozoo"
author = "The astrozoo authors"
copyright = "The astrozoo authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "plain_docstrings",
    "registry_pages",
]
exclude_patterns = ["_build", "measured"]  # measured: tables that pages include

# Markdown: ::: fences, definition lists, and anchors for headings that other pages link to.
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# Docstrings follow the Google convention; types are read from the signatures.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"astrozoo {release}"
html_theme_options = {
    "source_repository": "",
    "light_css_variables": {"color-brand-primary": "#1d5c7a", "color-brand-content": "#1d5c7a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4e0", "color-brand-content": "#7cc4e0"},
}
html_copy_source = False
html_show_sphinx = False
