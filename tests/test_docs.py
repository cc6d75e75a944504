"""The static site is built from the notebooks, works without a server, and asks no other host for anything."""
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
# what a browser asks for by itself; links wait for a click
FETCHED = dict(
    script='src',
    link='href',
    img='src',
    iframe='src',
    source='src',
    object='data',
    embed='src',
)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The pages of three chapters, run."
    out = tmp_path_factory.mktemp('docs')/'site'
    done = subprocess.run(
        [
            sys.executable,
            ROOT / 'docs' / 'build.py',
            '--only',
            '2_images/03_captions',
            '1_toy/01_drawings',
            '6_evaluate/10_verdicts',
            '--out',
            out,
        ],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert list(out.parent.iterdir()) == [out]                                # nothing lies beside the site
    return out


class Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag in FETCHED and a.get(FETCHED[tag]): self.found.append(a[FETCHED[tag]])
        self.found += re.findall(r'url\(([^)]+)\)', a.get('style') or '')


def test_a_chapter_is_a_page_with_what_its_cells_show(site):
    captions, drawn = (site/f'{n}.html' for n in ('2_images/03_captions', '1_toy/01_drawings'))
    assert (
        'a woman by the sea' in captions.read_text() and '<table border="1" class="dataframe">' in captions.read_text()
    )
    assert re.search(r'<img[^>]+src="\.\./_images/', drawn.read_text())
    assert '#| export' not in drawn.read_text() and 'default_exp' not in drawn.read_text()


def test_a_table_that_a_cell_writes_in_markdown_is_a_table(site):
    page = (site/'6_evaluate'/'10_verdicts.html').read_text()
    assert re.search(r'<th[^>]*><p>score ↑', page) and not re.search(r'<p>\| ', page)


def test_a_module_is_a_page_with_its_parameters_and_a_way_to_its_chapter(site):
    page = (site/'api'/'toy.drawings.html').read_text()
    assert 'id="hgdpo_curate.toy.drawings.draw_person"' in page
    # the comment beside the parameter
    assert 'the same seed draws the same picture' in page
    assert re.search(r'href="\.\./1_toy/01_drawings\.html#source-toy-drawings-draw-person"', page)
    assert 'id="source-toy-drawings-draw-person"' in (site/'1_toy'/'01_drawings.html').read_text()


def test_the_comment_beside_further_arguments_is_told(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'docs'))
    import build
    from hgdpo_curate.workspace import create_workspace
    page = build.entry(create_workspace, 'create_workspace', 'workspace', 'function')
    assert (
        '`**config` |  |  | overrides of `DEFAULTS`' in page and '**Returns** `Workspace` created or opened' in page
    )


def test_no_page_asks_another_host(site):
    pages, styles = list(site.rglob('*.html')), list(site.rglob('*.css'))
    assert len(pages) >= 8 and styles
    for p in pages:
        seen = Addresses()
        seen.feed(p.read_text())
        assert seen.found and not [a for a in seen.found if re.match(r'\s*["\']?(\w+:)?//', a)], p
    for p in styles: assert not re.search(r'@import\s+["\']?http|url\(\s*["\']?(https?:)?//', p.read_text()), p
    assert str(ROOT) not in ''.join(p.read_text() for p in pages)


def test_a_page_that_would_ask_another_host_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'docs'))
    import build
    (tmp_path / 'a.html').write_text(
        '<a href="https://example.org">a link waits for a click</a><img src="b.png"><script '
        'src="_static/c.js"></script>'
    )
    assert not build.asks_outside(tmp_path)
    for bad in (
        '<script async="async" src="https://cdn.example.org/x.js"></script>',
        '<p style="background: url(//example.org/y.png)">',
        '<link rel="stylesheet" href="http://example.org/z.css" />',
    ):
        (tmp_path/'b.html').write_text(bad)
        assert [p for p, _ in build.asks_outside(tmp_path)] == ['b.html']


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here; install it (apt-get install chromium) to read the '
                                             'site in a browser')
def test_search_finds_a_function_from_the_file_system(site):
    from playwright.sync_api import sync_playwright
    asked = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page()
        page.on('request', lambda r: asked.append(r.url))
        page.goto(f'file://{site}/index.html')
        page.get_by_placeholder('Search').fill('draw_person')
        page.keyboard.press('Enter')
        page.locator('ul.search li a', has_text='draw_person').first.click(timeout=20_000)
        page.wait_for_url('**/api/toy.drawings.html*')
        browser.close()
    assert asked and not [a for a in asked if not a.startswith(('file:', 'data:'))]


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here; install it (apt-get install chromium) to look at the '
                                             'site in a browser')
def test_a_chapter_looks_whole_on_a_wide_and_on_a_narrow_screen(site, tmp_path):
    """Every picture is shown, nothing sticks out, and in the screenshot the drawn people are there.

    Their colours, not white paper.
    """
    from PIL import Image
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page()
        page.goto(f'file://{site}/1_toy/01_drawings.html')
        pictures = page.locator('article img, main img')
        assert pictures.count() >= 2 and page.evaluate(
            '[...document.images].every(i => i.complete && i.naturalWidth > 0)'
        )
        for width in (1300, 420):
            page.set_viewport_size(dict(width=width, height=800))
            assert page.evaluate('document.documentElement.scrollWidth') <= width
            shot = os.path.join(os.environ.get('HGDPO_SCREENSHOTS', tmp_path), f'docs-{width}.png')
            page.screenshot(path=shot, full_page=True)
            colours = []                                                       # of each picture; the first is a palette
            for i in range(pictures.count()):
                pictures.nth(i).screenshot(path=tmp_path/'picture.png')
                colours.append(len(Image.open(tmp_path/'picture.png').convert('RGB').getcolors(1 << 24)))
            assert max(colours) > 100
        browser.close()


def weights_row(name, w, kinds) -> str: # of the table in docs/weights.md
    "A model's weights as the registry has them."
    used = ', '.join(f'{kind} `{model}`' for kind, model in kinds) or 'with another model'
    files = ', '.join(f'`{f}`' for f in w.files)
    commercial = {True: 'yes', False: '**no**', None: 'not stated'}[w.commercial]
    where = f'`{w.hub}`' if w.hub else w.page or 'fetch by hand; the message that misses them says where'
    return f'| `{name}` | {used} | {where} | {files} | {w.licence} | {commercial} |'


def test_the_page_on_weights_says_what_the_registry_says():
    import hgdpo_curate.registry  # noqa: F401  adds its rows
    from hgdpo_curate.image_models import ROWS, WEIGHTS
    page = (ROOT/'docs'/'weights.md').read_text()
    def kinds(name): return [(r.kind, r.name) for r in ROWS.values() if name in (r.weights, r.name) and r.weights
                             and (r.weights == name or WEIGHTS.get(r.name) is r.weights)]
    there = [n for n, w in WEIGHTS.items() if w.files and w.stated != 'this package']
    for name in there: assert weights_row(name, WEIGHTS[name], kinds(name)) in page, name
    assert sum(line.startswith('| `') and '| `--' not in line for line in page.splitlines()) == len(there)
