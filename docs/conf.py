"""How Sphinx shows the pages that docs/build.py wrote."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
project, author, copyright = 'hgdpo_curate', 'The hgdpo_curate authors', '2026 onwards, the hgdpo_curate authors'
version = release = re.search(r'__version__ = "([^"]+)"', (ROOT/'hgdpo_curate'/'__init__.py').read_text())[1]
extensions = ['myst_nb']
myst_enable_extensions = ['colon_fence', 'deflist']
myst_heading_anchors = 3
nb_execution_mode = 'off'                   # docs/build.py has run them
nb_ipywidgets_js = {}                       # widgets would be fetched from a foreign host
nb_merge_streams = True
nb_render_markdown_format = 'myst'          # CommonMark, the default, knows no tables
nb_mime_priority_overrides = [('html', 'text/html', 5)]
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type', 'misc.highlighting_failure']
html_theme, html_title = 'furo', 'hgdpo_curate'
html_static_path, html_css_files = ['static'], ['site.css']
html_theme_options = dict(
    light_css_variables={'color-brand-primary': '#3a5f8a', 'color-brand-content': '#3a5f8a'}, navigation_with_keys=True
)
html_show_sphinx, html_copy_source = False, False
add_module_names = False
toc_object_entries_show_parents = 'hide'
