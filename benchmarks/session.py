"""A scripted hour in the App, in Chromium: photos, pairs, flags, undo, a server that crashes, a second reviewer.

Every key is a real key in a real browser. What ought to stand afterwards is worked out here, apart from the package;
then tables, App and panel are held against it. Prints what was done, how long a key took, and whether all agree.

    python benchmarks/session.py
    python benchmarks/session.py --photos 40 --pairs 20 --flags 12 --undos 6
    python benchmarks/session.py --speed 10000        only the time from key to picture, with so many images
"""
import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

os.environ.update(FIFTYONE_DO_NOT_TRACK='true', FIFTYONE_DATABASE_VALIDATION='false')
ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
READY = """() => { const S = window.hgdpo && window.hgdpo.S, l = S && S.looker;
    return S && S.about && S.modal && l && l.sample && l.sample.id === S.modal && l.loaded && !S.busy }"""


def make_world(folder, prompts):
    "Drawn people: a photo and three generated images per prompt, scored; faults are proposed as flags."
    from hgdpo_curate import create_workspace
    from hgdpo_curate.toy.drawings import draw_person
    ws, images, rows = create_workspace(folder, resolution='40x56'), [], dict(prompts=[], scores=[], flags=[])
    for p in range(prompts):
        photo, pid, iid = draw_person([71, p]), f'{p:016x}', f'a{p:015x}'
        rows['prompts'].append(dict(prompt_id=pid, prompt=photo.prompt, real_image_id=iid, fold='train'))
        images.append(ws.save_image(photo.pil(), 'real', iid, prompt_id=pid))
        for k in range(3):
            made, mid = draw_person([72, p, k], photo.attributes, 'any' if k == 2 else ''), f'b{p:07x}{k:08x}'
            images.append(ws.save_image(made.pil(), 'generated', mid, prompt_id=pid, seed=k))
            score = dict(image_id=mid, scorer='smallscore', scorer_version='x', score=float(made.fault == '') + k/10)
            rows['scores'].append(score)
            flag = dict(image_id=mid, flag=made.flag, status='proposed', source='rule', part='', side='')
            if made.fault: rows['flags'].append(dict(flag, confidence=.9, reason=f'drawn with {made.fault}'))
    ws.append('images', images)
    for table, some in rows.items(): ws.append(table, some)
    return ws


class Server:
    "The App's server as a process of its own, which can crash."
    def __init__(self):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.start()

    def start(self):
        import importlib.util
        from hgdpo_curate.curate.app import plugins_folder
        main = Path(importlib.util.find_spec('fiftyone').submodule_search_locations[0])/'server'/'main.py'
        env = os.environ | dict(FIFTYONE_PLUGINS_DIR=str(plugins_folder()), FIFTYONE_PLUGINS_CACHE_ENABLED='true')
        command = [sys.executable, str(main), '--address', '127.0.0.1', '--port', str(self.port)]
        self.process = subprocess.Popen(
            command, env=env | dict(PYTHONPATH=str(ROOT)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(1200):
            try: return urllib.request.urlopen(f'http://127.0.0.1:{self.port}/', timeout=2)
            except OSError: time.sleep(.25)
        raise SystemExit("The App's server does not start.")

    def crash(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Reviewer:
    "Somebody at a browser, with a name."
    def __init__(self, browser, server, dataset, name):
        self.name, self.address, self.keys = name, f'http://127.0.0.1:{server.port}/datasets/{dataset}', 0
        self.page = browser.new_context(viewport=dict(width=1400, height=850)).new_page()
        self.page.route('**/*', lambda r: r.continue_() if '127.0.0.1' in r.request.url else r.abort())
        self.page.add_init_script(f"localStorage.setItem('hgdpo-reviewer', '{name}')")

    def see(self, view):
        self.page.goto('about:blank')
        self.page.goto(f'{self.address}?view={view}', wait_until='commit')
        there = self.page.locator('[data-cy="looker"], [data-cy^="hgdpo-winner"], [data-cy="hgdpo-pool"]')
        there.first.wait_for(timeout=180_000)
        self.page.wait_for_timeout(1000)
        if not self.page.locator('[data-cy="looker"]').count():       # a panel covers the grid, as it was left
            self.page.get_by_text('Samples', exact=True).first.click()
        self.page.locator('[data-cy="looker"]').first.wait_for(timeout=180_000)
        self.page.wait_for_function('() => window.hgdpo && window.hgdpo.S.about', timeout=180_000)
        self.page.wait_for_timeout(1000)
        while self.page.locator('[data-cy="modal"]').is_visible():
            self.page.mouse.click(8, 400)
            self.page.wait_for_timeout(500)

    def open(self):
        # the grid keeps its tiles in any order
        tiles = [(t.bounding_box(), t) for t in self.page.locator('[data-cy="looker"]').all()]
        box, tile = min(((b, t) for b, t in tiles if b), key=lambda x: (x[0]['y'], x[0]['x']))
        tile.click(position=dict(x=box['width']*.7, y=box['height']*.8))       # past the checkbox of a small tile
        self.ready()

    def ready(self): self.page.wait_for_function(READY, timeout=120_000)
    def moved_from(self, image):
        from playwright.sync_api import TimeoutError
        moved = f'() => window.hgdpo.S.modal && !window.hgdpo.S.modal.endsWith("{image}")'
        try: self.page.wait_for_function(moved, timeout=60_000)
        except TimeoutError:
            state = '(({modal, busy, queue, toasts}) => JSON.stringify({modal, busy, queue, toasts}))'
            raise SystemExit(f'{self.name} pressed {self.keys} keys and still sees {image}: '
                             f'{self.page.evaluate(state + "(window.hgdpo.S)")}') from None

    def idle(self): self.page.wait_for_function('() => !window.hgdpo.S.busy', timeout=120_000)
    def shown(self): return self.page.evaluate('window.hgdpo.S.looker.sample.image_id')

    def press(self, key):
        self.page.keyboard.press(key)
        self.keys += 1

    def panel(self, name, wait_for):
        self.page.locator('[data-cy="new-panel-btn"]').first.click()
        self.page.get_by_text(name).first.click()
        self.page.locator(wait_for).first.wait_for(timeout=120_000)


class Expected:
    "What ought to stand: each subject's words by reviewer with their time, and each reviewer's actions to take back."
    def __init__(self): self.words, self.flags, self.done, self.clock = {}, {}, {}, 0

    def say(self, who, subject, decision):
        self.clock += 1
        of = self.words.setdefault(subject, {})
        self.done.setdefault(who, []).append(('words', subject, of.get(who)))
        of[who] = (self.clock, decision)

    def flag(self, who, image, flag, part=''):
        of = self.flags.setdefault(image, {})
        self.done.setdefault(who, []).append(('flags', (image, flag, part), of.get((flag, part))))
        of[flag, part] = who

    def take_back(self, who):
        kind, at, was = self.done[who].pop()
        of, key = (self.words[at], who) if kind == 'words' else (self.flags[at[0]], at[1:])
        if was is None: del of[key]
        else: of[key] = was

    def decision(self, subject): return max(self.words.get(subject, {}).values(), default=(0, None))[1]


def crash_in_a_decision(me, expected, ws, server):
    """A key while the server is gone; it comes back, and the page is loaded again. Whether the decision was written.

    FiftyOne's App sends again by itself, so it may be: then it counts like any other.
    """
    from hgdpo_curate.curate.reviews import last_words
    image = me.shown()
    server.crash()
    me.press('d')
    me.page.locator('[data-cy="hgdpo-toast"].bad').first.wait_for(timeout=30_000)
    server.start()
    me.page.wait_for_timeout(10_000)                                     # what was sent again is written by then
    me.see('real-to-review')
    me.open()
    written = last_words(ws).decision.get(image) == 'reject'
    say(f'the server crashed under a key, whose decision was {"" if written else "not "}written')
    if written: expected.say(me.name, image, 'reject')
    return written


def review_photos(me, expected, n, undos, ws, server):
    "Approve and reject photos; every so often take one back; once the server crashes."
    times, further = [], 0
    me.see('real-to-review')
    me.open()
    for k in range(n):
        if k + further == n: break
        image, key = me.shown(), 'd' if k % 5 == 3 else 'a'
        began = time.perf_counter()
        me.press(key)
        expected.say(me.name, image, 'reject' if key == 'd' else 'approve')
        if k + 1 + further < n: me.moved_from(image)
        me.ready()
        times.append(time.perf_counter() - began)
        if undos and k % (n//undos) == 1:
            me.press('Backspace')
            expected.take_back(me.name)
            me.page.wait_for_timeout(50)
            me.ready()
            if me.shown() != image: continue
            me.press('a')                                                # thought better of it
            expected.say(me.name, image, 'approve')
            me.page.wait_for_timeout(50)
            me.ready()
        if k == n//2: further += crash_in_a_decision(me, expected, ws, server)
    return times


def judge_pairs(me, expected, n, undos):
    "Swap, reject or pass on pairs in the panel; take some back."
    from hgdpo_curate.files import pair_id_of
    me.see('pairs-easy')
    me.panel('Pairs, side by side', '[data-cy="hgdpo-winner"]')
    look = "() => ['winner', 'loser'].map(r => document.querySelector(`[data-cy=hgdpo-${r}]`)?.dataset.id)"
    there = int(re.search(r'pair 1 of (\d+)', me.page.locator('[data-cy="hgdpo-pair"]').inner_text())[1])
    if there < n: raise SystemExit(f'There are only {there} pairs; give more --photos than --pairs.')
    for k in range(n):
        ids = me.page.evaluate(look)
        if k % 5 == 0:
            winner, loser = (i.lstrip('0').rjust(16, '0')[-16:] for i in ids)
            prompt = f'{int(winner[1:8], 16):016x}'
            me.press('w')
            expected.say(me.name, pair_id_of('easy', prompt, winner, loser), 'swap')
            me.page.wait_for_function(f'() => ({look})()[0] === "{ids[1]}"', timeout=120_000)
            if k//5 < undos:
                me.press('Backspace')
                expected.take_back(me.name)
                me.page.wait_for_function(f'() => ({look})()[0] === "{ids[0]}"', timeout=120_000)
        if k + 1 == n: break
        now = me.page.evaluate(look)[0]
        me.press('ArrowRight')
        me.page.wait_for_function(f'() => ({look})()[0] !== "{now}"', timeout=120_000)


def flag_images(me, expected, n):
    "Flag generated images by key, every third with a part."
    me.see('pool-losers')
    me.open()
    for k in range(n):
        image = me.shown()
        me.press('3' if k % 3 == 0 else '8')
        if k % 3 == 0: me.press('h')
        else: me.press('Enter')
        expected.flag(me.name, image, 'bad_hand' if k % 3 == 0 else 'impossible_pose', 'hand' if k % 3 == 0 else '')
        me.moved_from(image)
        me.ready()


def second_reviewer(ben, expected, n):
    "Ben decides differently on photos that Anna has decided."
    ben.see('real-approved')
    ben.open()
    for _ in range(n):
        image = ben.shown()
        ben.press('d')
        expected.say(ben.name, image, 'reject')
        ben.moved_from(image)
        ben.ready()


def compare(ws, ds, expected, me):
    "Where tables, App and panel differ from what ought to stand, or from each other; [] where they agree."
    from hgdpo_curate.curate.reviews import last_words
    from hgdpo_curate.curate.splits import pairs_of
    from hgdpo_curate.judge.anatomy import open_flags
    wrong, words = [], last_words(ws).decision.to_dict()
    for subject in {*words, *expected.words}:
        if words.get(subject) != expected.decision(subject):
            wrong.append(f'table: {subject} {words.get(subject)}, not {expected.decision(subject)}')
    confirmed = open_flags(ws).query("status == 'confirmed'")
    stand = {(r.image_id, r.flag, r.part or '') for r in confirmed.itertuples()}
    ought = {(i, *key) for i, of in expected.flags.items() for key in of}
    wrong += [f'flags: {x}' for x in stand ^ ought]
    ds.reload()
    roles = {r.winner_id: 'winner' for r in pairs_of(ws)['easy'].itertuples()}
    roles |= {r.loser_id: 'loser' for r in pairs_of(ws)['easy'].itertuples()}
    for image, decision, flags, easy in zip(*ds.values(['image_id', 'decision', 'confirmed', 'easy'])):
        if decision != expected.decision(image): wrong.append(f'App: {image} {decision}')
        ought = {f for f, _ in expected.flags.get(image, {})}
        if {*(flags or ())} != ought: wrong.append(f'App: {image} {flags}, not {ought}')
        if easy != roles.get(image): wrong.append(f'App: {image} is {easy}, drawn as {roles.get(image)}')
    me.see('pool-by-prompt')
    me.panel('Curation progress', 'text=photos reviewed')
    text = me.page.locator('body').inner_text()
    photos = ds.match({'domain': 'real'}).values('image_id')
    said = [sum(expected.decision(i) == d for i in photos) for d in ('approve', 'reject')]
    bar = me.page.locator('[data-cy="hgdpo-counts"]').inner_text()
    for where, found in (('panel', text), ('bar', bar)):
        if not re.search(rf'{said[0]} approved, {said[1]} rejected', found): wrong.append(f'{where}: not {said}')
    return wrong


def key_to_picture(me, n, key):
    "Seconds from a key to the next picture, ready for the next key."
    me.see('real-to-review')
    me.open()
    times = []
    for _ in range(n):
        before, began = me.shown(), time.perf_counter()
        me.press(key)
        shown = f'l.sample.image_id !== "{before}"'
        me.page.wait_for_function(
            '() => { const S = window.hgdpo.S, l = S.looker;'
            f' return l && l.sample && l.sample.id === S.modal && {shown} && l.loaded }}',
            timeout=120_000,
            polling='raf',
        )
        times.append(time.perf_counter() - began)
        me.idle()
    return times


def key_times(me, images):
    for key, words in dict(ArrowRight="FiftyOne's own arrow", n='our key for next', a='approve and go on').items():
        times = key_to_picture(me, 30, key)
        print(f'{words} to the next picture, {images:,} images: median {statistics.median(times):.2f} s, '
              f'slowest {max(times):.2f} s', flush=True)


def an_hour(a, ws, ds, server, anna, ben): # where tables, App and panel differ
    expected, began = Expected(), time.time()
    times = review_photos(anna, expected, a.photos, a.undos//2, ws, server)
    say(f'{a.photos} photos reviewed')
    second_reviewer(ben, expected, max(2, a.photos//10))
    say('a second reviewer decided differently')
    judge_pairs(anna, expected, a.pairs, a.undos - a.undos//2)
    say(f'{a.pairs} pairs judged')
    flag_images(anna, expected, a.flags)
    say(f'{a.flags} images flagged')
    wrong = compare(ws, ds, expected, anna)
    print(f'{anna.keys + ben.keys} keys in {(time.time() - began)/60:.0f} minutes; a photo took '
          f'{statistics.median(times):.2f} s from key to key')
    print('tables, App and panel agree' if not wrong else f'{len(wrong)} differ:\n' + '\n'.join(wrong[:20]))
    return wrong


def say(words): print(f'{time.strftime("%H:%M:%S")}  {words}', flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, n in dict(photos=200, pairs=100, flags=60, undos=20).items():
        p.add_argument(f'--{name}', type=int, default=n)
    p.add_argument('--speed', type=int, default=0, help='measure key to picture among so many images, and nothing else')
    a = p.parse_args()
    if not CHROMIUM: raise SystemExit('There is no Chromium here; install it (apt-get install chromium).')
    from hgdpo_curate.curate.database import start_database
    from playwright.sync_api import sync_playwright
    with tempfile.TemporaryDirectory() as d, sync_playwright() as pw:
        mongod = start_database(Path(d)/'db')
        from hgdpo_curate import build_dataset
        from hgdpo_curate.tables import now
        if a.speed:
            from curate import fill
            from hgdpo_curate.workspace import create_workspace
            fill(ws := create_workspace(Path(d)/'people', resolution='40x56'), a.speed)
        else: ws = make_world(Path(d)/'people', a.photos)
        ds = build_dataset(ws)
        ds.info['opened'] = now()
        ds.save()
        server = Server()
        browser = pw.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        try:
            anna, ben = (Reviewer(browser, server, ds.name, name) for name in ('anna', 'ben'))
            wrong = key_times(anna, len(ds)) if a.speed else an_hour(a, ws, ds, server, anna, ben)
        finally:
            browser.close()
            server.crash()
            mongod.terminate()
            mongod.wait()
        if wrong: raise SystemExit(1)


if __name__ == '__main__': main()
