"""Every notebook runs from top to bottom; those of docs/book.txt show their outputs in git, all others are empty."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT/'docs'))
import book  # noqa: E402

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in str(p))


@pytest.mark.usefixtures('mongo')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch, capfd):
    from nbdev.test import test_nb
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv('HGDPO_QUICK', '1')                                     # tutorials in their smallest size
    ok, _ = test_nb(path, skip_flags=['slow', 'gpu', 'net'])
    assert ok, ''.join(capfd.readouterr())[-3000:]


def name_of(path): return path.relative_to(ROOT/'nbs').with_suffix('').as_posix()


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if name_of(p) not in book.listed()], ids=lambda p: p.stem)
def test_notebook_has_no_outputs(path):
    assert not [c['id'] for c in json.loads(path.read_text())['cells'] if c.get('outputs')]
    assert os.path.getsize(path) < 200_000


@pytest.mark.parametrize('name', book.listed())
def test_a_page_of_the_book_is_as_make_book_left_it(name):
    "Sources and pictures are those of docs/book.json, and the page is small; the sentence says what to run."
    entry = json.loads(book.MANIFEST.read_text()).get(name)
    assert not book.faults(name, book.read(name), entry)


def test_the_manifest_holds_the_listed_notebooks_and_no_other():
    assert {*json.loads(book.MANIFEST.read_text())} == {*book.listed()} <= {name_of(p) for p in NOTEBOOKS}


@pytest.mark.parametrize('change, word', [
    (lambda nb: nb['cells'][-1]['source'].append('#'), 'was changed since'),
    (lambda nb: nb['cells'][-1].update(outputs=[dict(data={'image/png': 'AAAA'})]), 'other pictures'),
    (lambda nb: nb['cells'][-1].update(outputs=[dict(data={'text/html': '<img src="data:image/png;base64,AAAA">'})]),
     'other pictures'),
    (lambda nb: [c.update(outputs=[]) for c in nb['cells'] if 'outputs' in c], 'shows no outputs'),
])
def test_a_stale_page_is_named_with_what_to_run(change, word):
    name = book.listed()[0]
    nb = book.read(name)
    entry = dict(sources=book.sources_hash(nb), pictures=book.pictures(nb))
    assert entry['pictures'] and not book.faults(name, nb, entry)
    change(nb)
    wrong = ' '.join(book.faults(name, nb, entry))
    assert word in wrong and f'nbs/{name}.ipynb' in wrong and 'run: make book' in wrong
    assert 'not in docs/book.json' in book.faults(name, nb, None)[0]


def test_the_book_shows_no_photographs_and_nothing_of_the_machine_that_made_it():
    assert book.PRIVATE['HGDPO_TEST_DATA'] == '/nonexistent'
    for name in book.listed():
        nb = book.read(name)
        assert not re.search('HGDPO_TEST_DATA|test_data', ''.join(''.join(c['source']) for c in nb['cells']))
        told = ''.join(
            ''.join(v)
            for c in nb['cells']
            for o in c.get('outputs', [])
            for k, v in (o.get('data') or dict(text=o.get('text', ''))).items()
            if not k.startswith('image/')
        )
        assert not re.search(r'/tmp/|/home/|/root/| at 0x[0-9a-f]+|it/s]', told), name
        assert '<iframe' not in told and '<script' not in told


def test_the_index_shows_the_tree_of_today():
    "A room that was added or got another line is in the output too, though the cells of the index are the same."
    tree = next(c for c in book.read('index')['cells'] if c['id'] == 'the-tree')
    shown = ''.join(line for o in tree['outputs'] for line in o.get('text', []))
    for path in NOTEBOOKS:
        if path.stem == 'index': continue
        cell = ''.join(json.loads(path.read_text())['cells'][0]['source'])
        line = next(t.removeprefix('> ') for t in cell.split('\n') if t.startswith('> '))
        said = f'{path.stem} is not in the tree of nbs/index.ipynb; run: make book'
        assert f'    {path.stem:20}  {line}\n' in shown, said
        assert f'{path.parent.name}/\n' in shown


def test_nbdev_clean_leaves_the_book_unchanged(tmp_path):
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*'))
    shutil.copy(ROOT/'settings.ini', tmp_path)
    here = os.environ | dict(JUPYTER_DATA_DIR=str(tmp_path/'jupyter'), PYTHONWARNINGS='ignore')
    clean = 'from nbdev.clean import nbdev_clean; nbdev_clean()'
    done = subprocess.run(
        [sys.executable, '-c', clean],
        cwd=tmp_path,
        env=here,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cleaned = {p: tmp_path/'nbs'/p.relative_to(ROOT/'nbs') for p in NOTEBOOKS}
    assert not [name_of(p) for p, copy in cleaned.items() if p.read_bytes() != copy.read_bytes()]
