"""The real App in a real browser, used as a reviewer would, from the first photo to the panel.

Each test goes on where the one before left the workspace. Screenshots are kept in screenshots/ (or HGDPO_SCREENSHOTS).
"""
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = [
    pytest.mark.usefixtures('mongo'),
    pytest.mark.skipif(
        CHROMIUM is None, reason='no Chromium here; install it (apt-get install chromium) to test the App in a browser'
    ),
]


def make_world(folder):
    "A workspace whose pool has known faults, and a caption that tries to be a script."
    from hgdpo_curate import create_workspace
    from hgdpo_curate.toy.drawings import draw_person
    ws = create_workspace(folder, resolution='40x56')
    for p in range(12):
        d, pid = draw_person([71, p]), f'{p:016x}'
        made = {f'{p:02x}{k:014x}': draw_person([72, p, k], d.attributes, 'any' if k == 2 else '') for k in range(4)}
        ws.append(
            'prompts',
            [
                dict(
                    prompt_id=pid,
                    prompt=d.prompt
                    + (' <img src=x onerror="window.broken=1"><script>window.broken=1</script>' if p == 0 else ''),
                    real_image_id=f'a{p:015x}',
                    fold='train',
                )
            ],
        )
        ws.append(
            'images',
            [ws.save_image(d.pil(), 'real', f'a{p:015x}', prompt_id=pid)]
            + [
                ws.save_image(
                    x.pil(),
                    'generated',
                    i,
                    prompt_id=pid,
                    seed=n,
                )
                for n, (i, x) in enumerate(made.items())
            ],
        )
        ws.append(
            'scores',
            [
                dict(
                    image_id=i,
                    scorer='smallscore',
                    scorer_version='x',
                    score=float(x.fault == '') + n / 10,
                )
                for n, (i, x) in enumerate(made.items())
            ],
        )
        ws.append(
            'flags',
            [
                dict(
                    image_id=i,
                    flag=x.flag,
                    status='proposed',
                    source='rule',
                    part='',
                    side='',
                    confidence=0.9,
                    reason=f'drawn with {x.fault}',
                )
                for i, x in made.items()
                if x.fault
            ],
        )
    return ws


class Reviewer:
    "A person at the browser."
    def __init__(self, page, address, shots):
        self.page, self.address, self.shots, self.actions, self.said = page, address, shots, 0, []
        # the fonts that are kept out
        page.on(
            'console', lambda m: self.said.append(m.text) if m.type == 'error' and 'ERR_FAILED' not in m.text else None
        )
        page.on('pageerror', lambda e: self.said.append(str(e)))

    def see(self, view, name=None):
        self.page.goto('about:blank')
        self.page.goto(f'{self.address}?view={view}')
        self.page.locator('[data-cy="looker"]').first.wait_for(timeout=90_000)
        # thumbnails are drawn after they are there
        self.page.wait_for_timeout(1500)
        self.close()                                                           # the App remembers a picture left open
        self.shoot(name or view)

    def shoot(self, name):
        self.page.screenshot(path=str(Path(self.shots)/f'{name}.png'))

    def open(self, place=0): # in the grid
        self.page.locator('[data-cy="looker"]').nth(place).click()
        self.ready()

    def ready(self): # keys act on the open sample, and wait for nothing
        self.page.locator('[data-cy="hgdpo-keys"][data-sample]:not([data-waiting])').wait_for(timeout=60_000)

    def shown(self): # the sample that the keys act on; the sidebar draws only the entries that are in view
        return self.page.locator('[data-cy="hgdpo-keys"]').first.get_attribute('data-sample')

    def press(self, key):
        self.ready()
        self.actions += 1
        self.page.keyboard.press(key)

    def close(self):
        modal = self.page.locator('[data-cy="modal"]')
        for _ in range(6):
            if not modal.is_visible(): return
            self.page.mouse.click(8, 500)                                      # beside the open picture
            self.page.wait_for_timeout(800)
        assert not modal.is_visible()

    def until(self, true, seconds=30):
        end = time.time() + seconds
        while time.time() < end:
            if true(): return
            # not a sleep: the page's requests pass through `route` here, and would wait for it
            self.page.wait_for_timeout(200)
        self.shoot('waited-in-vain')
        raise AssertionError(f'it did not happen; the browser said: {self.said[-5:]}')


@pytest.fixture(scope='module')
def world(tmp_path_factory, mongo):
    import fiftyone as fo
    from playwright.sync_api import sync_playwright
    from hgdpo_curate import open_app
    ws = make_world(tmp_path_factory.mktemp('world')/'people')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    session = open_app(ws, port=port, remote=True)
    shots = os.environ.get('HGDPO_SCREENSHOTS', ROOT/'screenshots')
    Path(shots).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1400, height=850))
        page.route(
            '**/*',
            lambda r: (
                r.continue_() if '127.0.0.1' in r.request.url or not r.request.url.startswith('http') else r.abort()
            ),
        )
        yield ws, Reviewer(page, f'http://127.0.0.1:{port}/datasets/{session.dataset.name}', shots)
        browser.close()
    session.close()
    fo.close_app()


def reviews(ws): return ws.table('reviews').set_index('subject_id').decision


def test_photos_are_approved_and_rejected_with_one_key_each(world):
    ws, me = world
    me.see('real-to-review')
    me.open()
    before = me.actions
    for n, key in enumerate('aaadaa', 1):
        shown = me.shown()
        # a hasty second stroke must not decide on the next photo unseen, nor twice on this
        me.press(key)
        me.page.keyboard.press(key)
        me.until(lambda n=n: len(ws.table('reviews')) == n)
        me.until(lambda shown=shown: me.shown() != shown)
    me.shoot('reviewing')
    me.close()
    assert reviews(ws).value_counts().to_dict() == dict(approve=5, reject=1)       # six photos, six of them different
    assert (me.actions - before)/6 <= 2 and len(reviews(ws)) == 6


def test_an_anatomy_failure_is_flagged_by_the_form(world):
    ws, me = world
    me.see('pool-anatomy-failures')
    me.open()
    me.press('g')
    me.page.get_by_text('bad_hand', exact=True).first.click()
    me.shoot('flagging')
    me.page.get_by_role('button', name='Execute').click()
    me.until(lambda: (ws.table('flags').source == 'human').any())
    flag = ws.table('flags').query("source == 'human'").iloc[0]
    assert (flag.flag, flag.status, flag.reviewer) == ('bad_hand', 'confirmed', 'tester')
    me.page.wait_for_timeout(1000)
    me.close()


def test_a_digit_flags_and_zero_clears(world):
    ws, me = world
    me.see('pool-anatomy-failures')
    me.open()
    first = me.shown()
    me.press('1')
    me.until(lambda: (ws.table('flags').query("source == 'human'").flag == 'extra_limb').any())
    me.until(lambda: me.shown() != first)
    me.press('0')
    me.until(lambda: (ws.table('flags').query("source == 'human'").status == 'cleared').any())
    me.page.wait_for_timeout(500)
    me.close()


def test_a_pair_is_swapped_and_trained_that_way(world):
    from hgdpo_curate.curate.splits import pairs_of
    ws, me = world
    me.see('pairs-easy')
    before = pairs_of(ws)['easy'].set_index('prompt_id')
    # of the fifth pair: the first one's loser was flagged above, the fourth photo rejected
    me.open(8)
    me.press('w')
    me.until(lambda: (reviews(ws) == 'swap').any())
    me.close()
    after = pairs_of(ws)['easy'].set_index('prompt_id')
    turned = [
        p for p in after.index if after.winner_id[p] == before.loser_id[p] and after.loser_id[p] == before.winner_id[p]
    ]
    assert len(turned) == 1


def test_captions_are_shown_as_text(world):
    ws, me = world
    me.see('real-approved')
    me.open()
    # the caption of the first photo, as it was written
    me.page.get_by_text('<script>window.broken=1</script>').first.wait_for(timeout=20_000)
    assert me.page.evaluate('window.broken') is None
    me.close()


def test_the_panel_counts_what_is_done(world):
    ws, me = world
    me.see('pool-by-prompt')
    me.page.locator('[data-cy="new-panel-btn"]').click()
    me.page.get_by_text('Curation progress').first.click()
    photos = set(ws.table('images').query("domain == 'real'").image_id)
    me.page.get_by_text(f'{len(photos & set(reviews(ws).index))} of 12 photos reviewed').wait_for(timeout=60_000)
    me.page.wait_for_timeout(1500)
    me.shoot('progress')
