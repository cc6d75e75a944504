"""`hgdpo pool --score`: images are scored while they are in memory, as `hgdpo score` would score their files."""
import time

import numpy as np
import pytest
from conftest import Chance, quiet

from hgdpo_curate import create_workspace, import_photos, register_scorer, score_images
from hgdpo_curate.cli import main
from hgdpo_curate.judge.scores import generate_and_score
from hgdpo_curate.toy.drawings import export_photos


class Light: # a registered scorer that may fail
    name, version, bad = 'light', '1', False
    def score(self, images, prompts):
        return np.full(len(images), np.nan) if Light.bad else np.array([np.asarray(i, float).mean() for i in images])


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    register_scorer('light', Light, measures='brightness', licence='Apache-2.0')
    register_scorer('chance', Chance, measures='nothing', licence='Apache-2.0')
    return export_photos(tmp_path_factory.mktemp('photos')/'photos', 3, seed=3)


def workspace_of(photos, folder, **config):
    ws = create_workspace(
        folder,
        resolution='40x56',
        steps=2,
        guidance=2.,
        **config,
    )
    import_photos(ws, photos, progress=lambda items, **k: items)
    return ws


@pytest.mark.parametrize('image_format', ['png', 'webp'])
def test_scores_of_the_pool_are_those_of_its_files(photos, tmp_path, random_base, image_format):
    ws = workspace_of(photos, tmp_path/'ws', image_format=image_format)
    made = generate_and_score(ws, 'light,chance', n=4, batch=5, base=random_base, progress=quiet)
    pool = set(ws.table('images').query("domain == 'generated'").image_id)
    at_once = ws.table('scores')
    assert len(pool) == made and len(at_once) == 2*made and set(at_once.image_id) == pool
    for scorer in (Light(), Chance()):                   # under another version, so that the files are read
        scorer.version = 'later'
        assert score_images(ws, scorer, progress=quiet) == len(ws.table('images'))
        later = ws.table('scores').query('scorer == @scorer.name').set_index('image_id').score
        now = at_once.query('scorer == @scorer.name').set_index('image_id').score
        assert np.array_equal(now, later[now.index])     # every pixel is that of the file


def test_a_scorer_that_fails_does_not_stop_the_pool(photos, tmp_path, random_base, capsys, monkeypatch):
    ws = workspace_of(photos, tmp_path/'ws')
    monkeypatch.setattr(Light, 'bad', True)
    command = ['pool', '--n', '2', '--workspace', str(ws.root), '--pretrained_model_name_or_path', str(random_base)]
    with pytest.warns(UserWarning, match='light stopped scoring .*left to: hgdpo score .*--scorer light'):
        assert main([*command, '--score', 'light,chance']) == 0
    made = len(ws.table('images').query("domain == 'generated'"))
    assert ws.table('scores').scorer.tolist() == ['chance']*made
    assert f'{made} images scored by chance' in capsys.readouterr().err
    monkeypatch.setattr(Light, 'bad', False)
    assert score_images(ws, 'light', progress=quiet) == len(ws.table('images'))
    assert main([*command, '--score', 'brightest']) == 2 and 'pickscore' in capsys.readouterr().err


class Raising: # as a scorer from outside may
    name, version = 'raising', '1'
    def score(self, images, prompts): raise ValueError('no such layer\nin this file')


class Slow: # notes how many scores are in the table when it is asked
    name, version, seen = 'slow', '1', []
    def score(self, images, prompts):
        Slow.seen.append(len(Slow.ws.table('scores')))
        time.sleep(1.1)
        return np.zeros(len(images))


def test_a_scorer_that_raises_anything_is_named_and_the_pool_goes_on(photos, tmp_path, random_base):
    ws = workspace_of(photos, tmp_path/'ws')
    register_scorer('raising', Raising, measures='nothing', licence='Apache-2.0')
    with pytest.warns(UserWarning, match=r'raising stopped scoring \(ValueError: no such layer in this file\)'):
        made = generate_and_score(ws, 'raising,chance', n=4, batch=2, base=random_base, progress=quiet)
    assert made == len(ws.table('images').query("domain == 'generated'")) > 4
    assert ws.table('scores').scorer.tolist() == ['chance']*made


def test_scores_of_the_pool_are_written_every_two_seconds(photos, tmp_path, random_base):
    ws = Slow.ws = workspace_of(photos, tmp_path/'ws')
    register_scorer('slow', Slow, measures='nothing', licence='Apache-2.0')
    made = generate_and_score(ws, 'slow', n=4, batch=2, base=random_base, progress=quiet)
    lost = [2*n - seen for n, seen in enumerate(Slow.seen)]        # what a kill would have lost, in images
    assert len(lost) == made/2 >= 4 and max(lost) <= 4
