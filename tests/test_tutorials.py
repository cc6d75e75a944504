"""The tutorials as somebody with photographs of their own runs them.

The marked cell switched, one chapter after the other.
"""
import json

import pytest
from conftest import ROOT
from execnb.shell import CaptureShell

from hgdpo_curate.toy.drawings import export_photos

# What a person would write into the marked cell, as small as a test can have it.
OWN = dict(
    curate="root, photos = Path('{0}/people'), Path('{0}/photos')\nsettings, pool_size, scorer, detector = "
           "dict(base_model='mannequin', resolution='40x56', steps=3, test_share=.2), 2, 'smallscore', 'drawn_faults'",
    train="root, preset, scorer, device = Path('{0}/people'), 'mannequin', 'smallscore', None\nsizes = "
          "dict(max_train_steps=3, train_batch_size=4, validation_steps=2)",
    document="root = Path('{0}/people')\nleaving = open_workspace(root).table('photo_facts').image_id[0]",
)


def run_chapter(name, own):
    "Run a tutorial cell by cell with `drawn` off and `own` after the marked cell; gives its namespace."
    shell, switched = CaptureShell(), 0
    for n, cell in enumerate(json.loads((ROOT/'nbs'/'tutorials'/f'{name}.ipynb').read_text())['cells']):
        text = ''.join(cell['source'])
        # the App itself: tests/test_jupyter.py
        if cell['cell_type'] != 'code' or text.startswith('#| slow'): continue
        for on, off in (('drawn = True', 'drawn = False'), ('drawn, quick = True,', 'drawn, quick = False,')):
            if text.startswith(on): text, switched = text.replace(on, off) + '\n' + own, switched + 1
        shell.run(text)
        if shell.exc: raise AssertionError(f'cell {n} of {name} failed:\n{text}') from shell.exc
    assert switched == 1
    return shell.user_ns


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with photos whose metadata states nothing but captions."
    folder = tmp_path_factory.mktemp('home')
    file = export_photos(folder/'photos', 16, seed=21)/'metadata.jsonl'
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text('\n'.join(json.dumps({k: r[k] for k in ('file_name', 'text', 'source')}) for r in rows))
    return folder


def test_the_three_chapters_follow_one_another_on_photos_of_ones_own(home, monkeypatch):
    from hgdpo_curate import open_workspace
    monkeypatch.chdir(home)
    seen = {name: run_chapter(name, own.format(home)) for name, own in OWN.items()}
    ws = open_workspace(home/'people')
    # no try-outs in a workspace of one's own
    assert ws.names('splits') == ['v1'] and ws.names('runs') == ['first']
    # a rehearsal takes nobody out
    assert len(ws.table('images').query("domain == 'real'")) == 16 and not len(ws.table('tombstones'))
    # as stated for the folder
    assert set(ws.table('photo_facts').consent) == {'yes'} and set(ws.table('photo_facts').licence) == {
        'all rights reserved'
    }
    assert seen['document']['gaps'] and seen['train']['table'].value.notna().any()
