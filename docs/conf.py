"""Sphinx's settings, and the few things that it does not do by itself. `python -m docs.build` runs it."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent.parent))

import refmeta
from docs.build import API, ROOT

project, copyright, version = "refmeta", "the refmeta authors", refmeta.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.linkcode"]
highlight_language, default_role, smartquotes = "text", "py:obj", False
autodoc_typehints, autodoc_member_order, autodoc_preserve_defaults = "none", "bysource", True
add_module_names = False

myst_enable_extensions, myst_fence_as_directive, myst_heading_anchors = ["dollarmath"], ["math"], 3
myst_url_schemes = {"http": None, "https": None, "source": "source/{{path}}.html#{{fragment}}", "site": "{{path}}"}

html_theme, html_title, html_static_path, html_css_files = "furo", "refmeta", ["static"], ["style.css"]
html_math_renderer, html_copy_source, html_show_sphinx = "mathml", False, False
html_theme_options = {"navigation_with_keys": True}
html_show_search_summary = False  # it is fetched, and a browser fetches nothing for a file

# What latex2mathml writes, and what MathML would have: named functions with space around them, operators that are no
# names, a minus that belongs to what follows.
MENDS = [
    ("<mi>(sin|cos)</mi>", r'<mi class="function">\1</mi>'),
    ("<mi>(;|&#x02032;)</mi>", r"<mo>\1</mo>"),
    ("<mo>&#x02032;</mo><mo>&#x02032;</mo>", "<mo>&#x02033;</mo>"),
    ("((?:&#x00028;|&#x0002C;|&#x0003D;)</mo>)<mo>&#x02212;", r'\1<mo form="prefix">&#x02212;'),
]

# The first module to have a name is the one that a page means by it.
PAGE_OF = {name: f"api.html#{module}.{name}" for module in reversed(API) for name in API[module].split()}


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """The listing of the file that a documented name is really defined in."""
    name = info["fullname"].partition(".")[0]
    thing = inspect.unwrap(getattr(importlib.import_module(info["module"]), name))
    return f"source/{Path(inspect.getfile(thing)).relative_to(ROOT)}.html#{name}"


def equations_are_literal(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """In our docstrings a paragraph with indented lines is an equation or a table, to be shown as it stands."""
    paragraphs = "\n".join(lines).split("\n\n")
    shown = ["::\n\n" + indent(p, "  ") if "\n " in "\n" + p else p for p in paragraphs]
    lines[:] = "\n\n".join(shown).splitlines()


def skip_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """What a named tuple says of its fields is nothing; its docstring says what they are."""
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field") else None


def link_public_names(app: Any, doctree: nodes.document) -> None:
    for literal in list(doctree.findall(nodes.literal)):
        page = PAGE_OF.get(literal.astext())
        if page and not isinstance(literal.parent, (nodes.reference, nodes.title)) and "/" not in app.env.docname:
            reference = nodes.reference("", "", refuri=page, internal=True)
            literal.replace_self(reference)
            reference += literal


def setup(app: Any) -> None:
    def visit(block: bool) -> Any:
        def to_mathml(writer: Any, node: nodes.Element) -> None:
            tex = node.astext().replace("{aligned}", "{align*}")  # all that latex2mathml knows of it is the other name
            equation = convert(tex, display="block" if block else "inline")
            for wrong, right in MENDS:
                equation = re.sub(wrong, right, equation)
            writer.body.append(f'<div class="math">{equation}</div>' if block else equation)
            raise nodes.SkipNode

        return to_mathml

    app.add_html_math_renderer("mathml", (visit(False), None), (visit(True), None))
    app.connect("autodoc-process-docstring", equations_are_literal)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-read", link_public_names)
