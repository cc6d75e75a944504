"""Every notebook runs from top to bottom, and carries no outputs."""
import json
import os

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in str(p))


@pytest.mark.usefixtures('mongo')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch, capfd):
    from nbdev.test import test_nb
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv('HGDPO_QUICK', '1')                                     # tutorials in their smallest size
    ok, _ = test_nb(path, skip_flags=['slow', 'gpu', 'net'])
    assert ok, ''.join(capfd.readouterr())[-3000:]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_has_no_outputs(path):
    assert not [c['id'] for c in json.loads(path.read_text())['cells'] if c.get('outputs')]
    assert os.path.getsize(path) < 200_000
