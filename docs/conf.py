"""How Sphinx builds these pages: `make docs`."""

import html
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
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
smartquotes_action = "qe"  # No dashes: `--flag` in the text stays a flag.
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


_ENDS = (r"(?<=[=,/:.])(?=[\w\"])", r"(?<=[_(])(?=\w)", r"(?<=[a-z])(?=[A-Z])")


def _pieces(word, ends=_ENDS):
    """Where a word of a table may break: the later ends if it is too long."""
    if len(word) <= 24 or not ends:
        return [word]
    parts = re.split(ends[0], word)
    return [p for part in parts for p in _pieces(part, ends[1:])]


def _break_lines(app, doctree, name):
    """Long words in tables break at their punctuation, numbers do not."""
    if app.builder.format != "html":
        return
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":  # Sphinx' own, between an argument and its text.
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))
    for table in doctree.findall(nodes.table):
        for text in list(table.findall(nodes.Text)):
            unbroken = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)
            words = [_pieces(word) for word in unbroken.split(" ")]
            if max(map(len, words)) == 1:
                text.parent.replace(text, nodes.Text(unbroken))
                continue
            words = [
                "<wbr>".join(
                    f'<span class="pre">{html.escape(p)}</span>' for p in word
                )
                for word in words
            ]
            text.parent.replace(
                text, nodes.raw("", " ".join(words), format="html")
            )


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
    app.connect("doctree-resolved", _break_lines)
    app.connect("autodoc-process-docstring", _plain_to_rst, priority=400)
