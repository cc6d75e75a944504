"""A workspace that version 0.1 wrote is opened, drawn from and forgotten from by this one."""
import tarfile

import pytest
from conftest import ROOT, quiet

from hgdpo_curate import forget, load_split, open_workspace, sample_images, workspace_status


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('old')
    with tarfile.open(ROOT/'tests'/'data'/'people-0.1.tar.xz') as tar: tar.extractall(folder, filter='data')
    return folder/'people'


def test_its_tables_split_and_run_are_read(packed, copy_of):
    ws = copy_of(open_workspace(packed))
    assert 'first' in workspace_status(ws) and len(ws.table('images').query("domain == 'real'")) == 8
    decided = ws.table('reviews').set_index('subject_id').decision
    assert [*decided] == ['approve'] and len(ws.table('reviews', history=True)) == 2       # the last decision wins
    split = load_split(ws)
    assert len(split['easy']) and set(split['easy'].columns) >= {'prompt', 'winner_id', 'loser_id'}


def test_its_lora_draws(packed, copy_of):
    ws = copy_of(open_workspace(packed))
    files = sample_images(ws, ['a person in a blue shirt'], 'first', progress=quiet)
    assert len(files) == 1 and files[0].exists()


def test_a_photo_is_forgotten_from_it(packed, copy_of):
    ws = copy_of(open_workspace(packed))
    photo = load_split(ws)['easy'].merge(ws.table('prompts'), on='prompt_id').real_image_id[0]
    result = forget(ws, photo, app=False, progress=quiet)
    assert 'nothing of it is left' in str(result)
    assert (
        photo not in set(ws.table('images').image_id) and ws.table('reviews', history=True).subject_id.ne(photo).all()
    )
    assert not [p for p in ws.root.rglob('*') if p.is_file() and photo.encode() in p.read_bytes()]
