"""The pictures of the App in README and the Curate chapter, taken in a real browser on a workspace of drawn people.

    python docs/screenshots.py demo
"""
import argparse
import io
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT/'benchmarks')]
from session import CHROMIUM, Reviewer, Server      # noqa: E402


def decide(me, view, keys):
    "Open a view and press keys on its pictures, so that there is something to see."
    me.see(view)
    me.open()
    for key in keys:
        image = me.shown()
        me.press(key)
        me.moved_from(image)
        me.ready()


def take(me, file, wait=2500):
    "A picture of the page, as a palette of 256 colours: a quarter of the bytes."
    from PIL import Image
    me.page.mouse.move(4, 4)
    me.page.wait_for_timeout(wait)
    shot = Image.open(io.BytesIO(me.page.screenshot())).convert('RGB')
    shot.quantize(256).save(file, optimize=True)


def take_all(me, folder):
    decide(me, 'real-to-review', 'aaadaaaa')
    take(me, folder/'photo.png', 600)
    decide(me, 'pool-losers', ['3', '8', '7'])
    me.see('pairs-easy')
    take(me, folder/'pairs.png')
    me.panel('Pairs, side by side', '[data-cy="hgdpo-winner"]')
    take(me, folder/'pair.png')
    me.see('pool-by-prompt')
    me.panel('Pool of a prompt', '[data-cy="hgdpo-pool"]')
    take(me, folder/'pool-panel.png')
    me.see('pool-by-prompt')
    me.panel('Curation progress', 'text=photos reviewed')
    take(me, folder/'progress.png')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('workspace', help='of drawn people, with pool and scores; decisions are written into it')
    p.add_argument('--output', default=str(ROOT/'docs'))
    a = p.parse_args()
    from playwright.sync_api import sync_playwright

    from hgdpo_curate import build_dataset
    from hgdpo_curate.curate.database import start_database
    from hgdpo_curate.tables import now
    folder = Path(a.output)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as d, sync_playwright() as pw:
        mongod = start_database(Path(d)/'db')
        ds = build_dataset(a.workspace)
        ds.info['opened'] = now()
        ds.save()
        server = Server()
        browser = pw.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        take_all(Reviewer(browser, server, ds.name, 'anna'), folder)
        browser.close()
        server.crash()
        mongod.terminate()
        mongod.wait()


if __name__ == '__main__': main()
