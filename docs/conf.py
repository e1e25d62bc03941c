"""Settings of the documentation site: `sphinx-build -W -b html docs docs/_build/html`."""

import re

import ltde

project = "ltde"
author = "The ltde developers"
release = version = ltde.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# The pages also render on GitHub: tables, maths between dollars, links to headings and to files.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
smartquotes = False  # primes stay primes
highlight_language = "none"  # indented blocks are formulas; code says which language it is

# Names between single backticks in docstrings link to what they name, where there is such a thing.
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them
autodoc_member_order = "bysource"
_ALIASES = ["ArrayLike", "Floats", "Integers", "LocalFunction", "Masses", "NDArray", "Recorded"]
autodoc_type_aliases = {name: name for name in _ALIASES}
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"ltde {release}"
html_copy_source = False
html_show_copyright = False


def setup(app):
    """Show type aliases by their names also where they are part of a union."""

    def named(app, what, name, value, options, *texts):
        return tuple(
            text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in texts
        )

    app.connect("autodoc-process-signature", named)
