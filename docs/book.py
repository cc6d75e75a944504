"""`make book`: run the notebooks listed in docs/book.txt, keep their outputs in git, and write docs/book.json.

    python docs/book.py                                  # every listed notebook, each in a fresh kernel
    python docs/book.py --only 5_train/00_losses         # this one alone
    python docs/book.py --check                          # run nothing; say which pages are stale

Only drawn people are shown: what looks for photographs of real people finds none.
docs/book.json holds a hash of each notebook's sources and of every picture that its outputs hold.
"""
import argparse
import base64
import hashlib
import html
import io
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from build import NBS, PRIVATE, ROOT, SKIPPED, database, directives, execute, plain_outputs  # noqa: E402

LIST, MANIFEST = ROOT/'docs'/'book.txt', ROOT/'docs'/'book.json'
MOST = 550*1024                                           # bytes of a notebook with its outputs


def listed() -> list: # paths relative to nbs/, without the suffix
    lines = (line.split('#')[0].strip() for line in LIST.read_text(encoding='utf-8').splitlines())
    return [line for line in lines if line]


def read(name) -> dict: # a notebook
    return json.loads((NBS/f'{name}.ipynb').read_text(encoding='utf-8'))


def sources_hash(nb) -> str:
    "Of what a person wrote: kind and text of each cell."
    cells = [[c['cell_type'], ''.join(c['source'])] for c in nb['cells']]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def _pictures_in(text): # Markdown or HTML, also a page quoted inside another -> bytes of each
    for found in re.findall(r'data:image/[\w.+-]+;base64,([A-Za-z0-9+/=\s]+)', html.unescape(text)):
        yield base64.b64decode(found)


def pictures(nb) -> list: # SHA-256 of each embedded picture, in the order of the page
    "Pictures of outputs, inside HTML or on their own, and attachments of cells."
    found = []
    for c in nb['cells']:
        found += [b for b in _pictures_in(''.join(c['source']))]
        bundles = [*c.get('attachments', {}).values(), *(o.get('data', {}) for o in c.get('outputs', []))]
        for kind, value in ((k, ''.join(v)) for b in bundles for k, v in b.items() if isinstance(v, (str, list))):
            if kind == 'image/svg+xml': found.append(value.encode())
            elif kind.startswith('image/'): found.append(base64.b64decode(value))
            else: found += _pictures_in(value)
        for o in c.get('outputs', []): found += _pictures_in(''.join(o.get('text', '')))
    return [hashlib.sha256(b).hexdigest() for b in found]


def faults(name, nb, entry) -> list: # sentences; `entry` is the notebook's in the manifest, or None
    "What is wrong with a listed notebook as it lies in git."
    again = f'run: make book, or: python docs/book.py --only {name}'
    if entry is None: return [f'nbs/{name}.ipynb is listed in docs/book.txt and not in docs/book.json; {again}.']
    out = []
    if sources_hash(nb) != entry['sources']:
        out.append(f'nbs/{name}.ipynb was changed since its outputs were made; {again}.')
    if pictures(nb) != entry['pictures']:
        out.append(f'nbs/{name}.ipynb holds other pictures than make book put there; {again}.')
    if not any(c.get('outputs') for c in nb['cells']): out.append(f'nbs/{name}.ipynb shows no outputs; {again}.')
    if (size := (NBS/f'{name}.ipynb').stat().st_size) > MOST:
        out.append(f'nbs/{name}.ipynb has {size//1024} KB, more than {MOST//1024}: show fewer or smaller pictures.')
    return out


def _lines(value): # as nbformat keeps texts
    return value.splitlines(True) if isinstance(value, str) else value


def smaller(picture: bytes) -> bytes: # PNG or JPEG
    "A picture as a palette of 96 colours, where that is smaller; drawn people and the thin lines of plots keep theirs."
    from PIL import Image
    image, out = Image.open(io.BytesIO(picture)), io.BytesIO()
    # by coverage, not by frequency: five curves in a plot have few pixels and would share two colours
    of = dict(method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    image.convert('RGB').quantize(96, **of).save(out, 'PNG', optimize=True)
    return min(picture, out.getvalue(), key=len)


def opened(text) -> str: # HTML of an output
    "A page in a frame is shut off from a forge's page and not shown there: its beginning stands in its place."
    def beginning(found):
        main = re.split('<h2', re.search(r'<main>(.*)</main>', html.unescape(found[1]), re.S)[1])
        parts = '<h2'.join(main[:2])
        return re.sub(r'<img[^>]*>', '', parts) + '<p>… The page goes on; run the notebook to see all of it.</p>'
    return re.sub(r'<iframe[^>]*srcdoc="([^"]*)"[^>]*></iframe>', beginning, text)


def with_smaller(text) -> str: # HTML of an output
    "The same with the pictures that it holds made smaller."
    def shrunk(found): return 'data:image/png;base64,' + base64.b64encode(smaller(base64.b64decode(found[1]))).decode()
    return re.sub(r'data:image/png;base64,([A-Za-z0-9+/=]+)', shrunk, text)


def bundle(data) -> dict: # of an output: kind -> content
    "Each output once: of a picture the smallest form, of a page in a frame its beginning, of a table no style sheet."
    # what has a page of its own needs no text, which may name files and captions
    if 'text/html' in data: data = {k: v for k, v in data.items() if k != 'text/plain'}
    drawn = [base64.b64decode(''.join(v)) for k, v in data.items() if k in ('image/png', 'image/jpeg')]
    out = {k: _lines(v) for k, v in data.items() if k not in ('image/png', 'image/jpeg', 'text/html')}
    if 'text/html' in data:
        text = re.sub(r'<style scoped>.*?</style>\n?', '', ''.join(data['text/html']), flags=re.S)
        out['text/html'] = _lines(with_smaller(opened(text)))
    if drawn:
        best = min(map(smaller, drawn), key=len)
        kind = 'image/png' if best.startswith(b'\x89PNG') else 'image/jpeg'
        out[kind] = base64.b64encode(best).decode()
    return dict(sorted(out.items()))


def is_bar(output) -> bool: # of a cell
    "Whether an output is a progress bar, which says how fast this machine was."
    data = output.get('data', {})
    return '<progress' in ''.join(data.get('text/html', '')) or '%|' in ''.join(data.get('text/plain', ''))


def settled(nb) -> dict: # a notebook that was run
    "Outputs without what changes from run to run or shows the machine, as nbdev_clean leaves them."
    nb = plain_outputs(nb)
    for c in nb['cells']:
        c['source'] = _lines(c['source'])
        if c['cell_type'] != 'code': continue
        c['outputs'] = [o for o in c['outputs'] if o.get('name') != 'stderr' and not is_bar(o)]
        for o in c['outputs']:
            if 'text' in o: o['text'] = _lines(o['text'])
            if 'data' in o: o['data'], o['metadata'] = bundle(o['data']), {}
    return nb


def write(name, nb):
    "Write a notebook as nbdev_clean does."
    from execnb.nbio import dict2nb, write_nb
    from nbdev.clean import clean_nb
    nb = dict2nb(nb)
    clean_nb(nb)
    write_nb(nb, NBS/f'{name}.ipynb')


def page(name) -> dict: # the notebook with outputs
    "Run a notebook as it stands, without the cells that the tests leave out too."
    nb = read(name)
    for c in nb['cells']:
        c['metadata'] = dict(tags=['skip-execution']) if SKIPPED & directives(c) else {}
        if c['cell_type'] == 'code': c['outputs'] = []
    nb = settled(execute(name, nb))
    for c in nb['cells']: c['metadata'] = {}
    return nb


def make(only=None) -> int: # exit status
    "Run the listed notebooks and write the manifest."
    os.environ.update(PRIVATE)
    os.environ.pop('MPLBACKEND', None)                                        # the kernels draw inline
    sys.path.insert(0, str(ROOT))
    names, kept = listed(), json.loads(MANIFEST.read_text(encoding='utf-8')) if MANIFEST.exists() else {}
    if missing := set(only or ()) - set(names):
        sys.exit(f'{sorted(missing)[0]} is not in docs/book.txt; add it there, or give one of: {", ".join(names)}.')
    with database(only or names):
        for name in only or names:
            start = time.time()
            nb = page(name)
            write(name, nb)
            kept[name] = dict(sources=sources_hash(nb), pictures=pictures(nb))
            shown = {n: kept[n] for n in names if n in kept}
            MANIFEST.write_text(json.dumps(shown, indent=1) + '\n', encoding='utf-8')
            size = (NBS/f'{name}.ipynb').stat().st_size//1024
            print(f'{name}: {len(kept[name]["pictures"])} pictures, {size} KB, {time.time() - start:.0f} s', flush=True)
    return check()


def check() -> int: # exit status
    "Print what is wrong with the listed notebooks."
    kept = json.loads(MANIFEST.read_text(encoding='utf-8')) if MANIFEST.exists() else {}
    wrong = [w for name in listed() for w in faults(name, read(name), kept.get(name))]
    print(*wrong, sep='\n', end='\n' if wrong else '')
    return 1 if wrong else 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='NOTEBOOK', help='notebooks relative to nbs/, without the suffix')
    parser.add_argument('--check', action='store_true', help='run nothing; say which pages are stale')
    a = parser.parse_args()
    sys.exit(check() if a.check else make(a.only))
