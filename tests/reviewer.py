"""A person at the browser, the workspace that they review, and the App on it, for the tests of the App."""
import contextlib
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def make_world(folder, prompts=12):
    "A workspace whose pool has known faults, and a caption that tries to be a script."
    from hgdpo_curate import create_workspace
    from hgdpo_curate.toy.drawings import draw_person
    ws = create_workspace(folder, resolution='40x56')
    for p in range(prompts):
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
                    source='captioner' if p < 3 else 'file',
                    captioner='blip' if p < 3 else None,
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
                    scorer=scorer,
                    scorer_version='x',
                    score=sign * (float(x.fault == '') + n / 10),
                )
                for scorer, sign in (('smallscore', 1), ('contrary', -1))
                for n, (i, x) in enumerate(made.items())
            ],
        )
        seen = dict(detector='none', detector_version='x', confidence=.9, keypoints=None)
        boxes = dict(hand=[8., 26., 6., 6.], face=[14., 4., 12., 12.])
        ws.append(
            'detections',
            [seen | dict(image_id=i, kind=k, index=0, box=b) for i in made for k, b in boxes.items() if p == 5],
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

    def see(self, view, name=None, empty=False):
        self.page.goto('about:blank')
        self.page.goto(f'{self.address}?view={view}', wait_until='commit')
        if not empty: self.page.locator('[data-cy="looker"]').first.wait_for(timeout=240_000)
        # keys are refused until the workspace is read
        self.page.wait_for_function('() => window.hgdpo && window.hgdpo.S.about', timeout=240_000)
        # thumbnails are drawn after they are there
        self.page.wait_for_timeout(1500)
        self.close()                                                           # the App remembers a picture left open
        self.shoot(name or view)

    def shoot(self, name):
        self.page.screenshot(path=str(Path(self.shots)/f'{name}.png'))

    def in_order(self): # the tiles of the grid, which keeps them in any order
        found = [(t.bounding_box(), t) for t in self.page.locator('[data-cy="looker"]').all()]
        return [t for b, t in sorted((x for x in found if x[0]), key=lambda x: (round(x[0]['y']), x[0]['x']))]

    def open(self, place=0): # in the grid
        tile = self.in_order()[place]
        box = tile.bounding_box()
        tile.click(position=dict(x=box['width']*.7, y=box['height']*.8))       # past the checkbox of a small tile
        self.ready()

    def ready(self): # keys act on the open sample, and wait for nothing
        ready = self.page.locator('[data-cy="hgdpo-keys"][data-sample]:not([data-waiting])')
        self.until(lambda: ready.count() > 0, 60)

    def idle(self): # nothing waits, whether a picture is open or not
        self.until(lambda: self.page.locator('[data-cy="hgdpo-keys"]:not([data-waiting])').count() > 0, 60)

    def toast(self, text): # one that says this
        return self.page.locator('[data-cy="hgdpo-toast"]', has_text=text).first

    def told(self, text): # waits for such a message; each stands for seconds only
        self.until(lambda: self.toast(text).count() > 0, 90)

    def select(self, first, last): # in the grid, with two clicks
        tiles = self.in_order()
        for place, modifiers in ((first, []), (last, ['Shift'])):
            tiles[place].hover()
            tiles[place].click(position=dict(x=16, y=16), modifiers=modifiers)          # its checkbox
            self.actions += 1

    def tiles(self): return self.page.locator('[data-cy="looker"]').count()

    def shown(self): # the sample that the keys act on; the sidebar draws only the entries that are in view
        return self.page.locator('[data-cy="hgdpo-keys"]').first.get_attribute('data-sample')

    def caption(self): # what stands whole below the open picture; '' where nothing does
        found = self.page.locator('[data-cy="hgdpo-caption"]')
        return found.inner_text() if found.count() else ''

    def press(self, key):
        self.ready()
        self.actions += 1
        self.page.keyboard.press(key)

    def sign(self, name): # says who decides from now on
        who, field = (self.page.locator(f'[data-cy="hgdpo-{n}"]') for n in ('who', 'name'))
        def asks():
            if who.count(): who.click()
            self.page.wait_for_timeout(300)                                    # a form that closes takes the focus
            return field.count() > 0
        self.until(asks)
        field.fill(name)
        self.page.keyboard.press('Enter')

    def draw(self, part, side=60): # in the middle of the open photo, a square of so many pixels of the screen
        self.page.get_by_text('Annotate', exact=True).first.click()
        self.until(lambda: 'until Explore is chosen' in self.page.locator('[data-cy="hgdpo-counts"]').inner_text())
        words = self.page.get_by_text(part, exact=True)
        for _ in range(8):                                                     # until the picture is there to draw on
            self.page.wait_for_timeout(1000)
            self.page.locator('[data-cy="detection-mode"]').click()
            self.drag(side)
            self.page.wait_for_timeout(1500)
            if words.count(): break
        words.first.click()

    def drag(self, side): # a square in the middle of the open picture
        picture = self.page.locator('[data-cy="modal"] canvas').first.bounding_box()
        left, top = picture['x'] + picture['width']/2 - side/2, picture['y'] + picture['height']/2 - side/2
        self.page.mouse.move(left, top)
        self.page.mouse.down()
        self.page.mouse.move(left + side, top + side, steps=6)
        self.page.mouse.up()

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


needs_browser = [
    pytest.mark.usefixtures('mongo'),
    pytest.mark.skipif(
        CHROMIUM is None, reason='no Chromium here; install it (apt-get install chromium) to test the App in a browser'
    ),
]


@contextlib.contextmanager
def app_on(ws): # yields a `Reviewer`
    "The App on a workspace, in a browser that reaches nothing but it."
    import fiftyone as fo
    from playwright.sync_api import sync_playwright
    from hgdpo_curate import open_app
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    session = open_app(ws, port=port, remote=True)
    shots = os.environ.get('HGDPO_SCREENSHOTS', ROOT/'screenshots')
    Path(shots).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        context = browser.new_context(viewport=dict(width=1400, height=850))
        context.set_default_timeout(120_000)                                       # of a busy machine
        page = context.new_page()
        context.route(
            '**/*',
            lambda r: (
                r.continue_() if '127.0.0.1' in r.request.url or not r.request.url.startswith('http') else r.abort()
            ),
        )
        me = Reviewer(page, f'http://127.0.0.1:{port}/datasets/{session.dataset.name}', shots)
        me.session = session
        yield me
        browser.close()
    session.close()
    fo.close_app()


def reviews(ws): return ws.table('reviews').set_index('subject_id').decision
