"""A workspace is known by its own id.

Moved, copied, made anew at an old path, and with names that would lead out of it.
"""
import os
import pty
import shutil
import sys

import numpy as np
import pytest
from conftest import plain, quiet, winner

from hgdpo_curate import UserError, create_workspace, forget, import_photos, open_workspace, workspace_status
from hgdpo_curate.cli import main
from hgdpo_curate.curate.reviews import decide

mongo = pytest.mark.usefixtures('mongo')


@pytest.fixture
def ws(finished, copy_of): return copy_of(finished)


@pytest.fixture
def no_datasets(mongo):
    "None of ours is there before, and none after."
    import fiftyone as fo
    def clear():
        for name in fo.list_datasets():
            if name.startswith('hgdpo-'): fo.delete_dataset(name)
    clear()
    yield fo
    clear()


def as_version_01(fo, ws, ds):
    "A dataset as version 0.1 left it: named by the path, without an id, without the labels of the flags."
    from hgdpo_curate.workspace import _name_by_path
    ds.delete_sample_field('flagged')
    ds.info = {k: v for k, v in ds.info.items() if k != 'id'}
    ds.save()
    ds.name = _name_by_path(str(ws.root.resolve()))
    toml = ws.root/'workspace.toml'
    lines = [x for x in toml.read_text().splitlines() if x.split(' ')[0] not in ('id', 'root', 'format', 'old_dataset')]
    toml.write_text('\n'.join(lines))
    return ds.name


@pytest.mark.parametrize('name', ['', '..', '../../out', 'a/b', 'a\\b', '.hidden', '/tmp/out'])
def test_names_that_would_leave_the_workspace_are_refused(ws, name, capsys):
    def files(): # without what this machine remembers of hashes
        return sorted(p for p in ws.root.parent.rglob('*') if p.name != '.lock' and 'cache' not in p.parts)
    around = files()
    for argv in (
        ['pairs', '--scorer', 'chance', '--split', name],
        ['train', '--preset', 'mannequin', '--split', name],
        ['train', '--preset', 'mannequin', '--split', 'v1', '--run', name],
        ['train', '--preset', 'mannequin', '--split', 'none_of_that_name', '--run', name],
        ['card', '--split', name],
        ['evaluate', '--run', name],
        ['sample', 'a person', '--run', name] if name else [],
        ['card', '--run', name] if name else [],
    ):
        if argv: assert main([argv[0], '--workspace', str(ws.root), *argv[1:]]) == 2, argv
        assert 'Traceback' not in capsys.readouterr().err
    assert files() == around


def test_a_run_that_stopped_before_its_first_step_is_none(ws):
    from hgdpo_curate.document.footprint import footprint_of
    from hgdpo_curate.files import write_json
    write_json(ws.root/'runs'/'r'/'config.json', dict(split='v1'))
    assert ws.names('runs') == [] and 'none yet' in workspace_status(ws)
    assert footprint_of(ws, winner(ws)['photo']).runs == {}
    write_json(ws.root/'runs'/'r'/'easy'/'done.json', {})
    assert ws.names('runs') == ['r'] and footprint_of(ws, winner(ws)['photo']).runs == {'r': 'trained on it'}


@mongo
def test_forget_after_a_move_finds_the_dataset_under_the_old_path(ws, no_datasets, tmp_path):
    from hgdpo_curate import build_dataset
    one, ds = winner(ws), build_dataset(ws, 'chance')
    for app_of in ('this version', 'version 0.1'):
        if app_of == 'version 0.1': name = as_version_01(no_datasets, ws, ds)
        else: name = ds.name
        moved = open_workspace(shutil.move(ws.root, tmp_path/f'moved by {app_of}'))
        said = str(forget(moved, one['photo'], progress=quiet))
        assert 'samples removed from the App' in said
        left = no_datasets.load_dataset(name)
        left.reload()
        assert not len(left.match({'prompt': one['prompt']})) and len(left)
        ws, one = moved, winner_of_what_is_left(moved)


def winner_of_what_is_left(ws):
    photo = ws.table('prompts').real_image_id[0]
    return dict(photo=photo, prompt=ws.table('prompts').prompt[0])


@mongo
def test_a_workspace_made_anew_at_an_old_path_inherits_nothing(no_datasets, tmp_path):
    from hgdpo_curate import build_dataset, read_reviews
    from hgdpo_curate.toy.drawings import export_photos
    photos = export_photos(tmp_path/'photos', 4, seed=5)
    def made():
        ws = create_workspace(tmp_path/'w', resolution='40x56')
        import_photos(ws, photos, progress=lambda items, **_: items)
        return ws
    for version in ('this', '0.1'):
        ws = made()
        ds = build_dataset(ws)
        ds.tag_samples('reject')
        if version == '0.1': as_version_01(no_datasets, ws, ds)
        shutil.rmtree(ws.root)
        again = made()
        if version == '0.1':     # the later one too was made by version 0.1
            toml = again.root/'workspace.toml'
            toml.write_text('\n'.join(x for x in toml.read_text().splitlines() if x[:2] not in ('id', 'ro', 'fo')))
            again = open_workspace(again.root)
            assert again.config['old_dataset'] in no_datasets.list_datasets()
        build_dataset(again)
        assert read_reviews(again) == (0, {}) and not len(again.table('reviews', history=True))
        shutil.rmtree(again.root)


@mongo
def test_a_dataset_of_version_01_is_taken_over_with_tags_and_what_people_added(ws, no_datasets):
    from hgdpo_curate import build_dataset
    from hgdpo_curate.curate.samples import dataset_name
    ds = build_dataset(ws, 'chance')
    photo = ds.load_saved_view('real: to review').first()
    ds.add_sample_field('mood', no_datasets.StringField)
    ds.set_values('mood', ['calm']*len(ds))
    ds.select(photo.id).tag_samples('reject')
    name = as_version_01(no_datasets, ws, ds)
    ws = open_workspace(ws.root)
    again = build_dataset(ws, 'chance')
    assert again.name == dataset_name(ws) and name not in no_datasets.list_datasets()
    assert again[photo.id].decision == 'reject' and again[photo.id].mood == 'calm'
    assert ws.table('reviews').decision.tolist() == ['reject']


@mongo
def test_a_copy_has_a_dataset_of_its_own_and_a_foreign_one_is_not_read(ws, no_datasets, tmp_path):
    from hgdpo_curate import build_dataset
    from hgdpo_curate.curate.operators import workspace_of
    ds = build_dataset(ws, 'chance')
    copied = open_workspace(shutil.copytree(ws.root, tmp_path/'a copy'))
    assert copied.id != ws.id and build_dataset(copied, 'chance').name != ds.name
    # moved by hand after it was copied: both hold the id, and the dataset tells whose it is
    third = shutil.copytree(ws.root, tmp_path/'third')
    toml = third/'workspace.toml'
    toml.write_text(toml.read_text().replace(str(ws.root.resolve()), str(tmp_path/'gone')))
    assert open_workspace(third).id == ws.id and build_dataset(third, 'chance').name != ds.name
    assert open_workspace(third).id != ws.id == open_workspace(ws.root).id
    ds.reload()
    ds.info['id'] = 'f'*16
    ds.save()
    with pytest.raises(UserError, match='does not belong to'): build_dataset(ws, 'chance')
    with pytest.raises(UserError, match='another workspace'): workspace_of(ds)


@mongo
def test_what_people_added_in_the_app_survives_when_their_prompt_is_written_again(ws, no_datasets, capsys):
    import fiftyone.brain as fob
    from hgdpo_curate import build_dataset
    ds = build_dataset(ws, 'chance')
    assert ds.media_type == 'image' and ds.description and ds.first().metadata.width == 40
    photo = ds.load_saved_view('real: to review').first()
    ds.add_sample_field('mood', no_datasets.StringField)
    ds.set_values('mood', ['calm']*len(ds))
    ds.save_view('mine', ds.limit(2))
    fob.compute_similarity(ds, embeddings=np.eye(len(ds)), brain_key='alike')
    decide(ws, [photo.image_id], 'approve', 'anna')
    ws.append(
        'flags',
        [
            dict(
                image_id=photo.image_id,
                flag='bad_hand',
                status='proposed',
                source='rule',
                reviewer='',
            )
        ],
    )
    again = build_dataset(ws, 'chance')
    assert (again[photo.id].decision, again[photo.id].mood) == ('approve', 'calm')
    assert [c.label for c in again[photo.id].flagged.classifications] == ['bad_hand']
    again.delete_samples(again.match({'domain': 'generated'}).limit(2))                   # edited by hand
    again = build_dataset(ws, 'chance')
    assert len(again) == len(ws.table('images')) and again[photo.id].mood == 'calm'
    assert again.has_saved_view('mine') and again.list_brain_runs() == ['alike']
    assert len(again.to_patches('faces_seen')) == 0
    capsys.readouterr()
    fresh = build_dataset(ws, 'chance', fresh=True)
    assert 'fields: mood; views: mine; brain runs: alike' in capsys.readouterr().err
    assert not fresh.has_field('mood') and fresh[photo.id].decision == 'approve'


@mongo
def test_another_fiftyones_database_is_named(no_datasets, monkeypatch, tmp_path):
    from hgdpo_curate.curate.database import another_database
    fo = no_datasets
    assert another_database(fo) == ''                                         # asked for by its address
    monkeypatch.setattr(fo.config, 'database_uri', None)
    monkeypatch.setattr(fo.config, 'database_dir', str(tmp_path/'dbB'))
    assert 'Another FiftyOne runs' in another_database(fo) and str(tmp_path/'dbB') in another_database(fo)


def terminal(monkeypatch, answer):
    "Standard input as a terminal at which somebody has typed an answer."
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode() + b'\n')
    monkeypatch.setattr(sys, 'stdin', open(theirs))


def test_forget_shows_and_asks_and_without_a_terminal_only_shows(ws, monkeypatch, capsys):
    one = winner(ws)
    name = os.path.basename(one['original'])
    argv = ['forget', name, '--workspace', str(ws.root), '--no_app']                      # the bare name of its file
    here = set(ws.table('images').image_id)
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, 'stdin', nothing)
        assert main(argv) == 1
    out, err = capsys.readouterr()
    assert 'would be removed' in out and '--yes' in err and set(ws.table('images').image_id) == here
    terminal(monkeypatch, 'n')
    assert main(argv) == 0 and set(ws.table('images').image_id) == here
    assert 'Nothing was removed' in capsys.readouterr().out
    terminal(monkeypatch, 'y')
    assert main(argv) == 0 and one['photo'] not in set(ws.table('images').image_id)
    assert 'nothing of it is left' in capsys.readouterr().out
    other = os.path.basename(ws.table('photo_facts').original_path[0])
    assert main(['forget', other, '--workspace', str(ws.root), '--no_app', '--yes']) == 0
    ws.append(
        'photo_facts', [dict(image_id=i, original_path=f'/{i}/same.png') for i in ws.table('photo_facts').image_id]
    )
    assert main(['forget', 'same.png', '--workspace', str(ws.root), '--yes']) == 1
    assert 'is the name of' in capsys.readouterr().err


def test_a_tilde_is_the_home_folder_from_python_too(tmp_path, monkeypatch):
    from hgdpo_curate import create_workspace, pack_workspace, unpack_workspace
    from hgdpo_curate.pipelines import check_base_folder
    from hgdpo_curate.toy.drawings import export_photos
    monkeypatch.setenv('HOME', str(tmp_path))
    export_photos(tmp_path/'photos', 4)
    ws = create_workspace('~/people', resolution='40x56')
    assert ws.root == tmp_path/'people' and open_workspace('~/people').id == ws.id
    assert import_photos(ws, '~/photos', progress=plain).imported == 4
    pack_workspace(ws, output='~/people.tar')
    assert unpack_workspace('~/people.tar', '~/again').ws.root == tmp_path/'again'
    photo = sorted(p.name for p in (tmp_path/'photos').glob('*.png'))[0]
    assert forget(ws, f'~/photos/{photo}', app=False, progress=quiet).done
    assert len(ws.table('images')) == 3
    with pytest.raises(UserError, match='no model_index'): check_base_folder('~/photos')
