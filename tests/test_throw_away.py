"""A scorer, a detector and a stated column, each added in one place, are everywhere."""
import json

import pytest

from hgdpo_curate import freeze_split, make_card
from hgdpo_curate.cli import main, make_parser
from hgdpo_curate.curate.samples import FIELDS, SIDEBAR


@pytest.mark.usefixtures('mongo')
def test_they_are_everywhere(finished, copy_of, capsys):
    ws = copy_of(finished)
    helped = {v: ' '.join(make_parser(v).format_help().split()) for v in ('score', 'flag', 'photos')}
    assert 'saturation (strength of colour)' in helped['score'] and 'gray (weak colours)' in helped['flag']
    assert '--film STR on which it was taken' in helped['photos']
    folder = finished.root.parent/'ws-photos'
    at = ['--workspace', str(ws.root)]
    assert main(['photos', str(folder), *at, '--film', 'Kodak Tri-X']) == 0
    assert main(['score', *at, '--scorer', 'saturation']) == 0 and main(['flag', *at, '--detector', 'gray']) == 0
    assert (ws.table('flags').flag == 'low_quality').any()
    assert SIDEBAR['photo'].count('film') == 1 and FIELDS['film'] == 'str'
    freeze_split(ws, 'v2', 'saturation', use_flags=False)
    text = make_card(ws, 'v2').path.read_text()
    assert '| Kodak Tri-X | 8 |' in text and all(f'<code>{name}</code>' in text for name in ('saturation', 'gray'))
    facts = json.loads((ws.root/'splits'/'v2'/'facts.json').read_text())
    assert facts['stated']['further']['film'][0][0] == 'Kodak Tri-X'
    from hgdpo_curate.curate.app import build_dataset
    ds = build_dataset(ws)
    photo = next(g for g in ds.app_config.sidebar_groups if g.name == 'photo')
    assert 'film' in photo.paths and 'Kodak Tri-X' in ds.distinct('film')
