"""`make docs`: run the notebooks, write a page per module from its docments, and let Sphinx make a static site of both.

    python docs/build.py                                 # everything, into site/
    python docs/build.py --only index 2_images/08_pool     # these notebooks alone
    python docs/build.py --no_run                        # without running any: what is shown is text and code

A notebook is run again when it, or any module of the package, has changed.
Only drawn people are shown: what looks for photographs of real people finds none.
"""
import argparse
import contextlib
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, PACKAGE, RUNS, SITE = ROOT/'nbs', ROOT/'hgdpo_curate', ROOT/'build'/'docs', ROOT/'site'
SKIPPED = {'slow', 'gpu', 'net'}                                              # cells that the tests leave out too
PRIVATE = dict(
    HGDPO_TEST_DATA='/nonexistent',
    HGDPO_REVIEWER='you',
    FIFTYONE_DO_NOT_TRACK='true',
    FIFTYONE_DATABASE_VALIDATION='false',
    HF_HUB_DISABLE_TELEMETRY='1',
    HF_HUB_OFFLINE='1',
    TOKENIZERS_PARALLELISM='false',
    PYTHONPATH=str(ROOT),
    PYTHONWARNINGS='ignore',
)
WINGS = dict(
    toy='Toy',
    images='Images',
    judge='Judge',
    curate='Curate',
    train='Train',
    evaluate='Evaluate',
    document='Document',
)
# the tutorials in the order in which they build on each other
LESSONS = ['curate', 'train', 'document', 'results', 'collapse']


def notebooks() -> list: # paths relative to nbs/, without the suffix, in reading order
    found = [
        p.relative_to(NBS).with_suffix('').as_posix()
        for p in NBS.rglob('*.ipynb')
        if '.ipynb_checkpoints' not in p.parts
    ]
    order = lambda n: LESSONS.index(n) if n in LESSONS else len(LESSONS)
    return sorted(found, key=lambda n: (order(n.removeprefix('tutorials/')), n))


def directives(cell) -> set: # 'export', 'slow', ...
    "The words of a cell's `#|` lines."
    return set(re.findall(r'^#\|\s*(\w+)', ''.join(cell['source']), re.M)) if cell['cell_type'] == 'code' else set()


def prepared(name) -> dict: # a notebook
    "A notebook as readers see it: without nbdev's own cells and `#|` lines, with a target before each exported cell."
    nb = json.loads((NBS/f'{name}.ipynb').read_text(encoding='utf-8'))
    module, cells = module_of(nb), []
    for c in nb['cells']:
        words, source = directives(c), ''.join(c['source'])
        if 'default_exp' in words or 'hide' in words: continue
        if c['cell_type'] == 'code': c = {**c, 'source': re.sub(r'^#\|.*\n?', '', source, flags=re.M)}
        if SKIPPED & words: c = {**c, 'metadata': {**c['metadata'], 'tags': ['skip-execution']}}
        if 'export' in words and (names := re.findall(r'^(?:class|def) ([a-zA-Z]\w*)', source, re.M)):
            cells.append(
                dict(
                    cell_type='markdown',
                    id=f'at-{c["id"]}',
                    metadata={},
                    source='\n'.join(f'(source-{module}.{n})=' for n in names),
                )
            )
        cells.append(c)
    return {**nb, 'cells': cells}


def module_of(nb) -> str: # 'images.pool', or '' for a page that exports nothing
    found = re.search(r'#\|\s*default_exp ([\w.]+)', json.dumps(nb['cells']))
    return found[1] if found else ''


def package_hash() -> str:
    h = hashlib.sha256()
    for p in sorted(PACKAGE.rglob('*.py')): h.update(p.read_bytes())
    return h.hexdigest()


def execute(name, nb) -> dict: # the notebook with outputs
    "Run a notebook in a kernel of its own, from the folder where it lies."
    import nbformat
    from nbclient import NotebookClient
    node = nbformat.reads(json.dumps(nb), as_version=4)
    where = {'metadata': {'path': str((NBS/name).parent)}}
    NotebookClient(
        node,
        timeout=1200,
        kernel_name='python3',
        resources=where,
        coalesce_streams=True,
    ).execute()
    for c in node.cells: c.get('metadata', {}).pop('execution', None)
    return json.loads(nbformat.writes(node))


def run(name, nb) -> dict: # the notebook with outputs
    "The same, unless the same one was run with the same package before."
    stamp = hashlib.sha256((json.dumps(nb, sort_keys=True) + package_hash()).encode()).hexdigest()[:16]
    kept = RUNS/f'{name.replace("/", "-")}-{stamp}.ipynb'
    if kept.exists(): return json.loads(kept.read_text(encoding='utf-8'))
    start = time.time()
    done = execute(name, nb)
    kept.parent.mkdir(parents=True, exist_ok=True)
    for old in kept.parent.glob(f'{name.replace("/", "-")}-*.ipynb'): old.unlink()
    kept.write_text(json.dumps(done, ensure_ascii=False), encoding='utf-8')
    print(f'{name}: run in {time.time() - start:.0f} s', flush=True)
    return done


def plain_outputs(nb) -> dict:
    "Outputs as a page can show them: no object addresses, no colour codes, no folders of the machine that built it."
    here = '|'.join(map(re.escape, [str(ROOT), str(Path.home())]))
    private = re.compile(rf'(?:{re.escape(tempfile.gettempdir())}(?:/tmp\w{{8}})?|{here})(?=[/\'"])')
    def clean(x):
        if isinstance(x, list): return clean(''.join(x))
        return (
            private.sub('…', re.sub(r'\x1b\[[0-9;]*m|(?<=object) at 0x[0-9a-f]+', '', x)) if isinstance(x, str) else x
        )
    for c in nb['cells']:
        # bars of other libraries, one line per step
        if 'outputs' in c:
            c['outputs'] = [o for o in c['outputs'] if not (o.get('name') == 'stderr' and '%|' in ''.join(o['text']))]
        for o in c.get('outputs', []):
            if 'text' in o: o['text'] = clean(o['text'])
            if 'data' in o:
                o['data'] = {
                    k: v if k.startswith('image/') else clean(v)
                    for k, v in o['data'].items()
                    if k != 'application/vnd.jupyter.widget-view+json'
                }
    nb['metadata'].pop('widgets', None)
    return nb


# One page per module, from signatures and the comments beside parameters.

def words(text) -> str:
    "Text for Markdown: code between backticks stays, all else is escaped."
    return ''.join(
        p if p.startswith('`') else re.sub(r'([\\*_<>|{}\[\]$#])', r'\\\1', p)
        for p in re.split(r'(`[^`]*`)', ' '.join((text or '').split()))
    )


def shown(annotation) -> str: # of a parameter or a return value
    return '' if annotation is inspect.Parameter.empty else f'`{getattr(annotation, "__name__", annotation)}`'


def signature_of(f) -> str:
    try: sig = inspect.signature(f)
    except (ValueError, TypeError): return '()'
    return str(
        sig.replace(
            parameters=[p.replace(annotation=p.empty) for p in sig.parameters.values() if p.name != 'self'],
            return_annotation=sig.empty,
        )
    )


def comments(obj) -> dict: # parameter -> what docments tells of it; 'return' too
    "The comments beside parameters. docments passes over that of `**more`, or takes it for the return value's."
    from fastcore.docments import docments
    try: told = docments(obj, full=True, returns=True)
    # a class made by a decorator may have no source of its own
    except Exception: return {}
    for n, d in told.items():
        if getattr(d, 'kind', None) != inspect.Parameter.VAR_KEYWORD or d.docment: continue
        found = re.search(rf'\*\*{n}\b[^#\n]*#\s*(.+)', inspect.getsource(obj))
        if found: d.docment = found[1]
        if found and told.get('return') and told['return'].docment == found[1]: told['return'].docment = None
    return told


def entry(obj, name, module, kind, target='', depth=0) -> str: # MyST
    "One function, class or method: signature, summary, a table of parameters, what is returned, where it is written."
    told, fence = comments(obj), ':'*(6 - depth)
    out = [
        f'{fence}{{py:{kind}}} {name}{signature_of(obj)}',
        '' if depth else f':module: hgdpo_curate.{module}',
        '',
        words(
            inspect.getdoc(obj)
            if not inspect.isclass(obj)
            or '__doc__' in vars(obj)
            and not (obj.__doc__ or '').startswith(f'{obj.__name__}(')
            else ''
        ),
    ]
    rows = [(n, d) for n, d in told.items() if n not in ('return', 'self', 'cls')]
    if any(d.docment for _, d in rows):
        out += ['', '| parameter | kind | default | what it is |', '|---|---|---|---|']
        out += [
            f'| `{"**" if d.kind == inspect.Parameter.VAR_KEYWORD else ""}{n}` | {shown(d.anno)} | '
            f'{"" if d.default is inspect.Parameter.empty else f"`{d.default!r}`".replace("|", chr(92) + "|")} | '
            f'{words(d.docment)} |'
            for n, d in rows
        ]
    back = None if inspect.isclass(obj) else told.get('return')
    if back and (back.docment or back.anno is not inspect.Parameter.empty):
        out += ['', f'**Returns** {shown(back.anno)} {words(back.docment)}'.rstrip()]
    if target: out += ['', f'{{ref}}`In its chapter <{target}>`']
    if inspect.isclass(obj):
        for n, m in vars(obj).items():
            if n.startswith('_') or not (inspect.isfunction(m) or isinstance(m, (property, classmethod, staticmethod))):
                continue
            of = m.fget if isinstance(m, property) else getattr(m, '__func__', m)
            if of and of.__doc__:
                out += [
                    '',
                    entry(
                        of,
                        n,
                        module,
                        'property' if isinstance(m, property) else 'method',
                        depth=depth + 1,
                    ),
                ]
    return '\n'.join([*out, fence])


def api_page(module, chapter) -> str: # MyST
    "The public names of a module, in the order in which its chapter tells them."
    import importlib
    m = importlib.import_module(f'hgdpo_curate.{module}')
    out = [
        f'# {module}',
        '',
        words(m.__doc__),
        '',
        f'Told in the chapter {{doc}}`/{chapter}`; import it from `hgdpo_curate.{module}`.',
        '',
    ]
    for name in getattr(m, '__all__', []):
        obj = getattr(m, name)
        if name.startswith('_') or not (inspect.isfunction(obj) or inspect.isclass(obj)): continue
        out += [
            '',
            entry(
                obj,
                name,
                module,
                'class' if inspect.isclass(obj) else 'function',
                f'source-{module}.{name}',
            ),
        ]
    return '\n'.join(out) + '\n'


# The pages in order.

def api_index(modules) -> str: # MyST
    "What can be imported from the top, then the modules by wing."
    import hgdpo_curate
    known = [(n, m) for n, m in hgdpo_curate._PUBLIC.items() if m in modules]
    top = [
        f'| {{py:obj}}`{n} <hgdpo_curate.{m}.{n}>` | {words(inspect.getdoc(getattr(hgdpo_curate, n)))} |'
        for n, m in known
    ]
    wings = {}
    for m in modules: wings.setdefault(m.split('.')[0] if '.' in m else 'house', []).append(m)
    trees = [
        f'## {WINGS.get(w, "Base and run")}\n\n```{{toctree}}\n:maxdepth: 1\n\n' + '\n'.join(wings[w]) + '\n```'
        for w in [*WINGS, 'house']
        if w in wings
    ]
    return (
        '\n'.join(
            [
                '# API',
                '',
                'From the top, `from hgdpo_curate import ...`; each is read on first use, so that the import '
                'stays instant.',
                '',
                '| name | what it does |',
                '|---|---|',
                *top,
                '',
                *trees,
            ]
        )
        + '\n'
    )


def front_page(pages) -> str: # MyST
    "The README, with the way through the wings beside it."
    text = (ROOT/'README.md').read_text(encoding='utf-8').replace('](docs/', '](/pictures/')
    chapters = lambda wing: [p for p in pages if re.sub(r'^\d+_', '', p).startswith(f'{wing}/')]
    groups = {
        'Start here': ["Overview <way>"] if 'index' in pages else [],
        'Tutorials': chapters('tutorials'),
        'Base': chapters('base'),
        **{WINGS[w]: chapters(w) for w in WINGS},
        'Run': chapters('run'),
        'Reference': ['api/index', 'Changes <changelog>'],
    }
    trees = [
        f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(entries) + '\n```'
        for caption, entries in groups.items()
        if entries
    ]
    return text + '\n\n' + '\n\n'.join(trees) + '\n'


def write_sources(source, names, execute=True):
    "Fill the folder `source`: notebooks with outputs, API pages, front page, pictures."
    modules = {}
    for name in names:
        nb = prepared(name)
        if execute: nb = run(name, nb)
        file = source/f'{"way" if name == "index" else name}.ipynb'           # the front page is the README
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain_outputs(nb)).replace('../../docs/', '/pictures/').replace('../docs/', '/pictures/')
        file.write_text(text, encoding='utf-8')
        if module := module_of(json.loads((NBS/f'{name}.ipynb').read_text(encoding='utf-8'))): modules[module] = name
    (source/'api').mkdir(parents=True, exist_ok=True)
    for module, chapter in modules.items():
        (source/'api'/f'{module}.md').write_text(api_page(module, chapter), encoding='utf-8')
    (source/'api'/'index.md').write_text(api_index(modules), encoding='utf-8')
    shutil.copytree(
        ROOT / 'docs',
        source / 'pictures',
        ignore=lambda d, files: [f for f in files if not f.endswith(('.png', '.jpg', '.svg'))],
    )
    (source/'index.md').write_text(front_page(names), encoding='utf-8')
    (source/'changelog.md').write_text((ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), encoding='utf-8')


@contextlib.contextmanager
def database(names):
    "An own MongoDB where a chapter wants FiftyOne, so that no FiftyOne elsewhere on the machine is touched."
    wanted = any(
        re.search('fiftyone|build_dataset', (NBS / f'{n}.ipynb').read_text(encoding='utf-8'), re.I) for n in names
    )
    if not wanted or os.environ.get('FIFTYONE_DATABASE_URI'):
        yield
        return
    from hgdpo_curate.curate.database import start_database
    with tempfile.TemporaryDirectory() as folder:
        mongod = start_database(folder)
        try: yield
        finally:
            mongod.terminate()
            mongod.wait()


def asks_outside(site) -> list: # (page, address)
    "What the pages would fetch from other hosts; links that wait for a click do not count."
    there = r'((?:https?:)?//[^"\')]+)'
    html = re.compile(
        rf'<(?:script|link|img|iframe|source|embed|object)\b[^>]*?\b(?:src|href|data)="{there}"|style="[^"]*url\(\s*\'?{there}'
    )
    css = re.compile(rf'url\(\s*["\']?{there}|@import\s+["\']{there}')
    return [
        (p.relative_to(site).as_posix(), next(filter(None, m)))
        for suffix, pattern in (('html', html), ('css', css))
        for p in Path(site).rglob(f'*.{suffix}')
        for m in pattern.findall(p.read_text(encoding='utf-8'))
    ]


def build(only=None, execute=True, out=SITE) -> Path: # the folder with index.html
    "Make the site. Needs no network, and the site asks none."
    os.environ.update(PRIVATE)
    os.environ.pop('MPLBACKEND', None)            # the kernels draw inline
    sys.path.insert(0, str(ROOT))
    from sphinx.cmd.build import build_main
    start, out, names = time.time(), Path(out), [n for n in notebooks() if not only or n in only]
    missing = set(only or ()) - set(names)
    if missing: sys.exit(f'There is no notebook {sorted(missing)[0]!r} in nbs/; there are {", ".join(notebooks())}.')
    with tempfile.TemporaryDirectory() as work:
        source = Path(work)/'source'
        with database(names): write_sources(source, names, execute)
        code = build_main(
            ['-q', '-b', 'html', '-c', str(ROOT / 'docs'), '-d', f'{work}/doctrees', str(source), f'{work}/site']
        )
        if code: sys.exit(f'Sphinx ended with {code}; what it said stands above.')
        shutil.rmtree(out, ignore_errors=True)
        # MyST leaves a folder beside what it builds
        shutil.move(f'{work}/site', out)
    if outside := asks_outside(out):
        sys.exit(f'The page {outside[0][0]} would fetch {outside[0][1]}; the site must work without a network.')
    print(
        f'{out / "index.html"}: {len(list(out.rglob("*.html")))} pages in {time.time() - start:.0f} s; open it in '
        'a browser, no server is needed.'
    )
    return out


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='NOTEBOOK', help='notebooks relative to nbs/, without the suffix')
    parser.add_argument('--no_run', action='store_true', help='show the notebooks without outputs')
    parser.add_argument('--out', default=SITE, help='where the site goes; what is there is replaced')
    a = parser.parse_args()
    build(a.only, not a.no_run, a.out)
