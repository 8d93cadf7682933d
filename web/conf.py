"""What Sphinx is told; `build.py` starts it."""

import sys
import tomllib
from pathlib import Path

WEB = Path(__file__).resolve().parent
sys.path[:0] = [str(WEB), str(WEB.parent)]

from landing import editions  # noqa: E402

PROJECT = tomllib.loads((WEB.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "PPO-Penalty from scratch"
html_title = project
author = "the ppo_toy contributors"
copyright = f"{author}, under the MIT licence"
version = release = PROJECT["version"]
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_codeautolink",
    "controls.page",
    "landing",
    "lessons",
    "reference",
]
exclude_patterns = [f"notebooks/{code}" for code in editions(unfinished=True)]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_block"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}

codeautolink_concat_default = True  # the cells of a lesson are one program
codeautolink_autodoc_inject = False
default_role = "py:obj"
autodoc_member_order = "bysource"
napoleon_custom_sections = [("Attributes", "params_style")]
autodoc_typehints = "none"  # shapes and units stand in the text
autodoc_default_options = {"members": True, "show-inheritance": False}

html_theme = "sphinx_book_theme"
html_static_path = ["static"]
templates_path = ["templates"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_favicon = "static/favicon.svg"
html_copy_source = True
html_show_sphinx = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],
    "article_header_end": ["languages.html", "article-header-buttons.html"],
    "use_download_button": False,  # stands at the top of each lesson
    "search_bar_text": "Search",
    "show_toc_level": 2,
    "logo": {"text": project},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
repository = PROJECT["urls"]["Repository"]
