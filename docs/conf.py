"""How Sphinx builds these pages: `make docs`."""

import os
import pathlib
import re
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import latex2mathml.converter
from docutils import nodes

import tfkfac

project = "tfkfac"
author = "the authors of tfkfac"
copyright = "the authors of tfkfac; Apache 2.0"
version = release = tfkfac.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "*/report.md"]  # Included, if at all.

html_theme = "furo"
html_title = f"tfkfac {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
maximum_signature_line_length = 70
napoleon_numpy_docstring = False


def _inline_math(self, node):
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _block_math(self, node):
    self.body.append('<div class="math" style="margin: 1.2em 0">')
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    self.body.append(f"{formula}</div>")
    raise nodes.SkipNode


def _indent(line):
    return len(line) - len(line.lstrip())


def _plain_to_rst(app, what, name, of, options, lines):
    """Docstrings are plain text: what is indented after an empty line is a
    formula or code, and a bar is a norm."""
    found, before, literal = [], 0, None
    for i, line in enumerate(lines):
        if literal is not None and (not line or _indent(line) >= literal):
            found.append(line)
            continue
        literal = None
        if i and not lines[i - 1] and _indent(line) > before:
            literal = _indent(line)
            found += [" " * before + "::", "", line]
            continue
        if line:
            before = _indent(line)
        parts = re.split(r"(``?[^`]*``?)", line)
        parts[::2] = [p.replace("|", r"\|") for p in parts[::2]]
        found.append("".join(parts))
    lines[:] = found


def setup(app):
    """Has formulas written as MathML, which browsers draw by themselves."""
    app.add_html_math_renderer(
        "mathml", (_inline_math, None), (_block_math, None)
    )
    app.connect("autodoc-process-docstring", _plain_to_rst, priority=400)
