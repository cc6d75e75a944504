"""A person who asks to be removed is removed from everything, however often the work is interrupted, and the search
at the end can be trusted."""
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import a_part_anew, plain, quiet, ROOT, winner

from hgdpo_curate import create_workspace, forget, import_photos, load_split, open_workspace, UsageError, UserError
from hgdpo_curate.cli import main
from hgdpo_curate.document.data_card import card_files
from hgdpo_curate.document.erase import erase
from hgdpo_curate.document.search import PLAN, search
from hgdpo_curate.document.removal import REGISTER
from hgdpo_curate.document.footprint import footprint_of, Matcher
from hgdpo_curate.files import pair_id_of, read_json, write_json
from hgdpo_curate.leases import Leases
from hgdpo_curate.parts import Removed, Table


def grep(root, *needles):
    "Files whose bytes or cells hold one of the needles: written apart from the package's own search, to check it."
    out = []
    for f in Path(root).rglob('*'):
        if not f.is_file(): continue
        text = f.read_bytes() + (
            str(pq.read_table(f, partitioning=None).to_pydict()).encode() if f.suffix == '.parquet' else b''
        )
        if any(n.encode() in text or n in str(f) for n in needles): out.append(str(f.relative_to(root)))
    return out


def test_nothing_is_left_and_everything_else_is(lived_in, copy_of):
    ws = copy_of(lived_in)
    one = winner(ws)
    before = {t: len(ws.table(t)) for t in ('images', 'scores')}
    needles = (one['photo'], one['prompt'], one['winner'], one['pair'], one['sha'])
    assert len(grep(ws.root, *needles)) > 10
    gone = forget(ws, one['winner'], app=False, progress=quiet)               # any image of the photo leads to it
    assert grep(ws.root, *needles) == [] and not gone.proof.found and gone.proof.cells > 100
    assert len(ws.table('images')) == before['images'] - len(gone.traces.images) and len(ws.table('scores')) == before[
        'scores'
    ] - len(gone.traces.images)
    assert all((ws.root/p).exists() for p in ws.table('images').path) and Path(one['original']).exists()
    assert (
        ws.table('reviews').note.tolist() == ['a duplicate of [removed]']
        and not len(ws.table('duplicates'))
        and not ws.table('flags', history=True).image_id.isin(gone.traces.images).any()
    )
    said = str(gone)
    for words in (
        'broken by removal',
        'run r was trained on it',
        one['original'],
        'looks alike and stays',
        'nothing of it is left',
    ):
        assert words in said
    assert (
        not list((ws.root / 'runs' / 'r').rglob('grid.png'))
        and list((ws.root / 'runs' / 'r').rglob('curves.png'))
        and not list((ws.root / 'samples').glob('*'))
    )
    kept = json.loads((ws.root/REGISTER).read_text())
    assert [r['runs'] for r in kept] == [{'r': 'trained on it'}] and one['photo'] not in str(kept)


@pytest.mark.parametrize('how', ['none', 'empty', 'unpacked'])
def test_without_any_cache_a_removal_ends_and_work_goes_on(lived_in, copy_of, tmp_path, how):
    from hgdpo_curate import freeze_split, open_workspace, pack_workspace, train_curriculum, unpack_workspace
    ws = copy_of(lived_in)
    one = winner(ws)
    if how == 'unpacked':
        file = pack_workspace(ws, 'all', progress=quiet).file
        unpack_workspace(file, tmp_path/'there', progress=quiet)
        ws = open_workspace(tmp_path/'there')
    else:
        folders = [d for d in (ws.root/'cache').iterdir() if d.is_dir()]
        assert folders
        shutil.rmtree(ws.root/'cache')
        # folders whose files are gone, as a cleaning by age leaves them
        for d in folders if how == 'empty' else (): d.mkdir(parents=True)
    gone = forget(ws, one['photo'], app=False, progress=quiet)
    assert not gone.proof.found and grep(ws.root, one['photo'], one['prompt'], one['winner']) == []
    assert not (ws.root/PLAN).exists()
    freeze_split(ws, 'v2', 'chance')
    how = dict(train_batch_size=2, max_train_steps=1, progress=quiet)
    train_curriculum(ws, 'v2', 'mannequin', 'again', base=lived_in.base_model, **how)
    assert (ws.root/'runs'/'again'/'easy'/'done.json').exists()


def test_a_split_that_held_the_photo_is_refused_by_training_and_one_frozen_anew_trains(lived_in, copy_of, capsys):
    from hgdpo_curate import freeze_split, train_curriculum
    ws = copy_of(lived_in)
    one = winner(ws)
    assert main(['forget', one['photo'], '--workspace', str(ws.root), '--no_app', '--yes']) == 0
    assert main(['train', '--workspace', str(ws.root), '--preset', 'mannequin']) == 1
    said = capsys.readouterr().err
    assert 'BROKEN_BY_REMOVAL' in said and 'freeze a new one' in said and 'Traceback' not in said
    assert 'hgdpo pairs' in (ws.root/'splits'/'v1'/'BROKEN_BY_REMOVAL.md').read_text()
    with pytest.raises(UserError, match='--split'): freeze_split(ws, 'v1', 'chance')          # the old name is taken
    freeze_split(ws, 'v2', 'chance')
    train_curriculum(
        ws,
        'v2',
        'mannequin',
        'again',
        train_batch_size=2,
        max_train_steps=1,
        progress=quiet,
    )
    assert not search(ws, traces_like(one), quiet).found


def traces_like(one):
    from hgdpo_curate.document.footprint import Footprint
    return Footprint(
        one['photo'],
        '',
        captions=[one['prompt']],
        images=[one['photo'], one['winner']],
        pairs=[one['pair']],
        files={one['sha']: 1},
    )


def test_a_split_is_broken_too_when_only_its_test_prompts_held_the_photo(lived_in, copy_of):
    ws = copy_of(lived_in)
    pid = load_split(ws)['test'].prompt_id.iloc[0]
    photo = ws.table('prompts').set_index('prompt_id').real_image_id[pid]
    gone = forget(ws, photo, app=False, progress=quiet)
    assert gone.traces.splits == {'v1': {'test_prompts': 1}} and gone.traces.runs == {'r': 'tested on it'}
    with pytest.raises(UserError, match='BROKEN_BY_REMOVAL'): load_split(ws)
    # a model that never saw it need not be trained again
    card = (ws.root/'runs'/'r'/'README.md').read_text()
    assert (
        '**Tested on a removed photo' in card
        and '**Trained on a removed photo' not in card
        and 'hgdpo evaluate --run r' in str(gone)
        and 'cannot forget' not in str(gone)
    )


def test_a_split_that_only_lists_the_photo_among_what_was_left_out_stays_whole(lived_in, copy_of):
    from hgdpo_curate import freeze_split
    ws = copy_of(lived_in)
    one = winner(ws)
    ws.append(
        'reviews',
        [
            dict(
                subject_id=one['photo'],
                decision='reject',
                reviewer='a',
                note='',
            )
        ],
    )
    freeze_split(ws, 'without', load_split(ws).info.scorer)
    before = load_split(ws, 'without')
    assert any(d['prompt_id'] for d in before.info.dropped['easy'] if d['image_id'] == one['photo'])
    with pytest.raises(KeyboardInterrupt): forget(ws, one['photo'], app=False, progress=stop_at('taking out', 4))
    gone = forget(ws, app=False, progress=quiet)
    assert set(gone.traces.splits) == {'v1'} and 'without' in gone.traces.listed
    assert load_split(ws, 'without')['easy'].equals(before['easy']) and grep(ws.root, one['photo'], one['prompt']) == []


def test_import_refuses_the_photo_under_another_name_and_takes_the_others(lived_in, copy_of, tmp_path):
    ws = copy_of(lived_in)
    one = winner(ws)
    forget(ws, one['original'], app=False, progress=quiet)                    # the file itself leads to the photo too
    folder = tmp_path/'again'
    folder.mkdir()
    shutil.copy(one['original'], folder/'renamed.png')
    (folder/'renamed.txt').write_text('someone else')
    from PIL import Image
    Image.new('RGB', (60, 80), 'red').save(folder/'new.png')
    (folder/'new.txt').write_text('a red wall')
    report = import_photos(ws, folder, progress=plain)
    assert report.imported == 1 and len(report.refused) == 1
    assert 'renamed.png was removed' in report.refused[0] and 'asked to be removed' in report.refused[0]


def test_the_names_of_exact_duplicates_go_with_the_photo_and_their_files_are_named(lived_in, copy_of, tmp_path):
    ws = copy_of(lived_in)
    one = winner(ws)
    without_cards(ws)
    other = ws.table('photo_facts').query("image_id != @one['photo']").iloc[0]
    # outside the workspace, and a folder of the user's own within it
    for folder in (tmp_path/'more', ws.root/'mine'):
        folder.mkdir()
        for name, file in (('anna.png', one['original']), ('ben.png', other.original_path)):
            shutil.copy(file, folder/name)
            (folder/name).with_suffix('.txt').write_text('x')
        import_photos(ws, folder, progress=plain)
    files = [str(d/'anna.png') for d in (tmp_path/'more', ws.root/'mine')]
    assert len(grep(ws.root/'tables', *files)) >= 1
    gone = forget(ws, one['photo'], app=False, progress=quiet)
    assert (
        grep(ws.root / 'tables', 'anna.png', one['photo']) == []
        and all(f'Your own file {f} was not changed' in str(gone) for f in files)
        and all(map(os.path.exists, files))
    )
    assert ws.table('photo_facts').set_index('image_id').copies[other.image_id] == sorted(
        f.replace('anna', 'ben') for f in files
    )


def stop_at(label, n):
    "A progress that raises at the n-th sign of life under a label."
    def progress(total, name):
        count = [0]
        def update(k):
            count[0] += 1
            if name == label and count[0] == n: raise KeyboardInterrupt
        return update
    return progress


def without_cards(ws):
    "Writing cards again takes seconds; where something else is tested there are none."
    for f in [*card_files(ws, 'v1'), *(ws.root/'runs').rglob('README.md')]: f.unlink(missing_ok=True)


@pytest.mark.parametrize(
    'label,n',
    [('taking out', k) for k in range(1, 7)] + [('rewriting', k) for k in (1, 7, 20, 60)] + [('searching', 1)],
)
def test_interrupted_at_any_step_it_finishes_when_run_again(lived_in, copy_of, label, n):
    ws = copy_of(lived_in)
    one = winner(ws)
    if (label, n) not in (('taking out', 5), ('taking out', 6)): without_cards(ws)
    with pytest.raises(KeyboardInterrupt): forget(ws, one['photo'], app=False, progress=stop_at(label, n))
    assert (ws.root/PLAN).exists()
    gone = forget(ws, one['photo'], app=False, progress=quiet)
    assert not (ws.root/PLAN).exists() and not gone.proof.found
    assert (
        grep(
            ws.root,
            one['photo'],
            one['prompt'],
            one['winner'],
            one['pair'],
            one['sha'],
        )
        == []
    )
    assert (
        len(ws.table('tombstones')) == 1
        and len(json.loads((ws.root / 'splits' / 'v1' / 'split.json').read_text())['broken']) == 1
    )


@pytest.mark.parametrize('writes', [1, 4, 9, 15])
def test_killed_in_the_middle_of_a_write_it_finishes_when_run_again(lived_in, copy_of, writes):
    ws = copy_of(lived_in)
    one = winner(ws)
    if writes < 15: without_cards(ws)
    code = f'''import os, signal
real, n = os.replace, 0
def replace(a, b):
    global n
    n += 1
    if n == {writes}: os.kill(os.getpid(), signal.SIGKILL)
    real(a, b)
os.replace = replace
from hgdpo_curate import forget
forget({str(ws.root)!r}, {one["photo"]!r}, app=False, progress=lambda t, l: lambda n: None)'''
    done = subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == -signal.SIGKILL
    # killed before anything was decided: nothing happened
    if not (ws.root/PLAN).exists():
        assert writes == 1
        return
    forget(ws, progress=quiet, app=False)                                     # no id needed to go on
    assert (
        grep(
            ws.root,
            one['photo'],
            one['prompt'],
            one['winner'],
            one['pair'],
            one['sha'],
        )
        == []
    )


def test_the_search_finds_what_is_planted_and_the_command_then_fails(lived_in, copy_of):
    ws = copy_of(lived_in)
    one = winner(ws)
    t = footprint_of(ws, one['photo'])
    picture = (ws.root/t.paths[0]).read_bytes()
    forget(ws, one['photo'], app=False, progress=quiet)
    plants = {
        'runs/r/note.md': f'seen: {one["prompt"]}'.encode(),
        'odd/copy.bin': picture,
        'odd/page.html': b'<img src="data:image/png;base64,' + base64.b64encode(picture) + b'">',
        'odd/deep.json': json.dumps([{'x': {'y': [one['winner']]}}]).encode(),
        f'odd/{one["photo"]}/x.txt': b'',
        'cache/idx.npy': one['sha'].encode(),
        'odd/long.bin': bytes(2**24 - 8) + one['photo'].encode() + bytes(2**20),
        'odd/.hidden.tmp': one['pair'].encode(),
    }
    for name, data in plants.items():
        (ws.root/name).parent.mkdir(parents=True, exist_ok=True)
        (ws.root/name).write_bytes(data)
    pq.write_table(pa.table(dict(who=[[{'id': one['photo']}], []], n=[1, 2])), ws.root/'odd'/'nested.parquet')
    assert set(search(ws, t, quiet).found) == {*plants, 'odd/nested.parquet'}
    for name in [*plants, 'odd/nested.parquet']: assert erase(ws, ws.root/name, Matcher(t)), name
    assert search(ws, t, quiet).found == [] and pq.read_table(ws.root/'odd'/'nested.parquet').to_pydict()['n'] == [2]


def test_a_run_whose_base_learned_from_the_photo_is_named_though_its_split_lacks_it(lived_in, copy_of):
    from hgdpo_curate import write_model_card
    ws = copy_of(lived_in)
    photo, how = winner(ws)['photo'], 'based on a model that was trained on it'
    shutil.copytree(ws.root/'splits'/'v1', ws.root/'splits'/'others')
    for f in (ws.root/'splits'/'others').glob('*.parquet'): pd.read_parquet(f).head(0).to_parquet(f)
    write_json(ws.root/'runs'/'sft'/'sft'/'done.json', {})
    bases = dict(
        a='./models/sft',
        b=str(ws.root / 'models' / 'sft'),
        c='./tiny/base',
        d='some/model',
    )
    for run, base in bases.items():
        write_json(
            ws.root / 'runs' / run / 'config.json',
            read_json(ws.root / 'runs' / 'r' / 'config.json') | dict(split='others', base=base),
        )
    for run in bases: write_json(ws.root/'runs'/run/'easy'/'done.json', {})
    (ws.root/'runs'/'a'/'evaluation').mkdir()
    (ws.root/'runs'/'a'/'evaluation'/'grid.png').write_bytes(b'')
    assert footprint_of(ws, photo).runs == {
        'r': 'trained on it',
        'sft': 'trained on all photos of the training fold',
        'a': how,
        'b': how,
    }
    write_json(ws.root/'tiny'/'about.json', {})
    would = forget(ws, photo, dry_run=True, progress=quiet)
    assert would.traces.runs['c'] == how and 'd' not in would.traces.runs and 'runs/a/evaluation/grid.png' in would.done
    assert f'The run a was {how}. A model cannot forget; train it again on a new base.' in str(would)
    write_json(ws.root/REGISTER, [dict(at='2026-11-01', runs=dict(r=how))])
    assert (
        '**Based on a model trained on a removed photo.** On 2026-11-01'
        in write_model_card(ws, 'r').path.read_text()
    )


@pytest.mark.parametrize('kind', ['data_card.make_card', 'model_card.write_model_card'])
def test_stopped_while_cards_are_written_again_a_second_try_writes_them(lived_in, copy_of, monkeypatch, kind):
    ws = copy_of(lived_in)
    cards = [f for f in [*card_files(ws, 'v1'), *(ws.root/'runs').rglob('README.md')] if f.exists()]
    def stopped(*a, **k): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(f'hgdpo_curate.document.{kind}', stopped)
        if 'model' in kind: m.setattr('hgdpo_curate.document.data_card.write_model_card', stopped)
        with pytest.raises(KeyboardInterrupt): forget(ws, winner(ws)['photo'], app=False, progress=quiet)
    forget(ws, app=False, progress=quiet)
    assert len(cards) > 5 and [f for f in cards if not f.exists() and f.parent.name != 'card'] == []
    assert (
        '**Broken by removal.**' in (ws.root / 'splits' / 'v1' / 'README.md').read_text()
        and '**Trained on a removed photo' in (ws.root / 'runs' / 'r' / 'README.md').read_text()
    )


def test_a_card_that_cannot_be_written_again_is_deleted(lived_in, copy_of, monkeypatch):
    ws = copy_of(lived_in)
    def refuses(*a, **k): raise UserError('no room for cards.')
    for name in ('data_card.make_card', 'model_card.write_model_card'):
        monkeypatch.setattr(f'hgdpo_curate.document.{name}', refuses)
    gone = forget(ws, winner(ws)['photo'], app=False, progress=quiet)
    assert gone.done['splits/v1/README.md'] == gone.done[
        'runs/r/README.md'
    ] == 'deleted' and 'could not be rewritten (no room for cards.)' in str(gone)
    assert not [f for f in [*card_files(ws, 'v1'), *(ws.root/'runs').rglob('README.md')] if f.exists()]


def test_a_trace_that_cannot_be_erased_fails_the_command_and_keeps_the_plan(lived_in, copy_of, capsys):
    ws = copy_of(lived_in)
    one = winner(ws)
    (ws.root/'odd.parquet').write_bytes(b'PAR1 broken')
    assert main(['forget', one['photo'], '--workspace', str(ws.root), '--no_app', '--yes']) == 1
    err = capsys.readouterr().err
    assert 'odd.parquet cannot be read' in err and 'Traceback' not in err and (ws.root/PLAN).exists()
    (ws.root/'odd.parquet').unlink()
    assert main(['forget', '--workspace', str(ws.root), '--no_app']) == 0 and not (ws.root/PLAN).exists()


@pytest.mark.parametrize(
    'kind,where', [('_erase_tensors', 'cache/'), ('_erase_rows', 'tables/'), ('_erase_json', 'runs/r/notes.json')]
)
def test_the_proof_does_not_rest_on_the_erasing(lived_in, copy_of, monkeypatch, kind, where):
    "Were one kind of file forgotten, the search would still find it, and the plan would stay."
    ws = copy_of(lived_in)
    without_cards(ws)
    write_json(ws.root/'runs'/'r'/'notes.json', [dict(image_id=winner(ws)['photo'], reason='a trace in a JSON file')])
    monkeypatch.setattr(f'hgdpo_curate.document.erase.{kind}', lambda file, needles: '')
    with pytest.raises(UserError, match=f'still contain a trace.*{where}'):
        forget(ws, winner(ws)['photo'], app=False, progress=quiet)
    assert (ws.root/PLAN).exists()


def test_what_two_photos_share_stays(lived_in, copy_of):
    "A caption that another photo has too, and its embedding."
    ws = copy_of(lived_in)
    one = winner(ws)
    other = ws.table('prompts').query("real_image_id != @one['photo']").iloc[0]
    ws.append(
        'prompts',
        [
            dict(
                prompt_id=other.prompt_id,
                prompt=f'{one["prompt"]}',
                real_image_id=other.real_image_id,
                fold=other.fold,
            )
        ],
    )
    gone = forget(ws, one['photo'], app=False, progress=quiet)
    assert (
        gone.traces.shared == [one['prompt']]
        and not gone.traces.keys
        and 'stays there and was not searched for' in str(gone)
    )
    assert one['prompt'] in set(ws.table('prompts').prompt)


def test_a_broken_image_a_reused_path_and_a_path_inside_another_take_nothing_else_along(lived_in, copy_of):
    ws = copy_of(lived_in)
    one = winner(ws)
    without_cards(ws)
    facts = ws.table('photo_facts').drop(columns='written_at')
    others = facts[facts.image_id != one['photo']]
    ws.append(
        'photo_facts',
        pd.concat(
            [
                facts[facts.image_id == one['photo']].assign(original_path='p/1.png'),
                others.iloc[[0]].assign(original_path='shop/1.png'),
                others.iloc[[1]].assign(original_path=one['original']),
            ]
        ),
    )
    # as a full disk leaves it
    (ws.root/ws.table('images').set_index('image_id').path[one['winner']]).write_bytes(b'')
    kept = {
        p
        for i, p in zip(ws.table('images').prompt_id, ws.table('images').path)
        if i != ws.table('prompts').set_index('real_image_id').prompt_id[one['photo']]
    }
    forget(ws, one['photo'], app=False, progress=quiet)
    assert set(ws.table('images').path) == kept and all((ws.root/p).exists() for p in kept)
    assert {'shop/1.png', one['original']} <= set(ws.table('photo_facts').original_path) and len(
        ws.table('photo_facts')
    ) == len(facts) - 1


def test_what_a_dry_run_names_is_what_goes(lived_in, copy_of):
    ws = copy_of(lived_in)
    before, planned = (
        {p: p.read_bytes() for p in ws.root.rglob('*') if p.is_file()},
        forget(ws, winner(ws)['photo'], dry_run=True, progress=quiet),
    )
    done = forget(ws, winner(ws)['photo'], app=False, progress=quiet)
    assert set(planned.done) == set(done.done)
    touched = {str(p.relative_to(ws.root)) for p, was in before.items() if not p.exists() or p.read_bytes() != was}
    assert touched - {'.lock'} <= set(planned.done) | {f'splits/v1/{f}' for f in ('split.json',)}, touched - set(
        planned.done
    )


def test_dry_run_changes_nothing_and_wrong_ids_are_one_sentence(lived_in, copy_of, capsys):
    ws = copy_of(lived_in)
    files = {p: p.stat().st_mtime_ns for p in ws.root.rglob('*') if p.is_file()}
    assert main(['forget', winner(ws)['photo'], '--workspace', str(ws.root), '--dry-run']) == 0
    said = capsys.readouterr().out
    assert (
        'would be removed' in said and {p: p.stat().st_mtime_ns for p in ws.root.rglob('*') if p.is_file()} == files
    )
    for line in (
        'images/generated: 3 files: would be deleted\n',
        'data_cards/v1.html: would be rewritten',
        'runs/r: 2 files: would be rewritten',
        'would be deleted, because it may show it',
    ):
        assert line in said, said
    assert (
        main(['forget', 'nobody', '--workspace', str(ws.root)]) == 1
        and 'not an image, photo or prompt' in capsys.readouterr().err
    )
    assert main(['forget', '--workspace', str(ws.root)]) == 2 and 'give what to remove' in capsys.readouterr().err


@pytest.mark.usefixtures('mongo')
def test_the_app_loses_the_samples_and_a_later_cleaning_finds_them_by_their_tombstone(lived_in, copy_of):
    from hgdpo_curate import build_dataset
    from hgdpo_curate.curate.dataset import read_tags
    from hgdpo_curate.document.removal import OUTDATED
    ws = copy_of(lived_in, 'shown')
    one = winner(ws)
    ds = build_dataset(ws, 'chance')
    assert len(ds.match({'image_id': one['photo']})) == 1
    forget(ws, one['photo'], app=False, progress=quiet)
    assert (ws.root/OUTDATED).exists()
    tagged = ds.match({'image_id': one['photo']}).first()                      # the App still shows it
    tagged.tags = ['reject', 'flag:bad_hand']
    tagged.save()
    assert read_tags(ds, ws, 'a') == (0, {}) and grep(ws.root, one['photo']) == []
    assert 'samples removed from the App' in str(forget(ws, progress=quiet)) and not (ws.root/OUTDATED).exists()
    ds.reload()
    assert (
        not len(ds.match({'prompt': one['prompt']}))
        and not len(ds.match({'look_alikes': one['photo']}))
        and len(ds) == len(ws.table('images'))
    )
    anew = build_dataset(ws, 'chance')
    assert len(anew) == len(ws.table('images'))
    anew.delete()


def of_an_earlier_version(ws): # the workspace as a process has it that does not look at tombstones
    earlier = open_workspace(ws.root)
    nothing = Removed(ws.root, ws.table('tombstones')[:0])
    earlier.removed = lambda: nothing
    return earlier


def with_a_part_anew(ws, photo, level=600):
    "A hand of a photo generated anew, in a pair that somebody rejected, and a box on the photo; the new image's id."
    from hgdpo_curate.curate.labels import draw_boxes
    image_id = a_part_anew(ws, photo, level=level, drawn_by='person:anna')
    prompt = ws.table('redrawn').set_index('image_id').prompt_id[image_id]
    pair, drawn = pair_id_of('local', prompt, photo, image_id), dict(stage='local', prompt_id=prompt)
    both = dict(winner_id=photo, loser_id=image_id, winner_score=.9, loser_score=.1)
    ws.append('pairs', [drawn | both | dict(pair_id=pair)])
    ws.append('reviews', [dict(subject_id=pair, decision='reject', reviewer='a')])
    draw_boxes(ws, photo, [('box', [4, 20, 10, 10])], 'anna')
    return image_id


def freeze_local(ws, image_id, split='v1'):
    "Local pairs in a frozen split, as its files have them."
    folder = ws.root/'splits'/split
    drawn = ws.table('pairs').query("stage == 'local' and loser_id == @image_id")
    shas = ws.table('images').set_index('image_id').sha256
    table = drawn.drop(columns=['stage', 'written_at']).assign(
        mask=[[.1, .4, .4, .7]]*len(drawn), winner_sha256=[*shas[drawn.winner_id]], loser_sha256=[*shas[drawn.loser_id]]
    )
    table.to_parquet(folder/'local.parquet', index=False)
    info = read_json(folder/'split.json')
    info['content']['local'] = 'of the test'
    write_json(folder/'split.json', info)


def traces_of_anew(ws, image_id):
    of = ws.table('redrawn').set_index('image_id').loc[image_id]
    sha = ws.table('images').set_index('image_id').sha256.get(image_id)
    return [image_id, pair_id_of('local', of.prompt_id, of.source_id, image_id), *([sha] if sha else [])]


def test_pictures_with_a_part_generated_anew_go_with_the_photo_and_those_of_others_stay(finished, copy_of):
    from hgdpo_curate.curate.labels import person_boxes
    ws = copy_of(finished)
    one, other = winner(ws), ws.table('images').query("domain == 'real'").image_id.iloc[-1]
    assert other != one['photo']
    mine, theirs = with_a_part_anew(ws, one['photo']), with_a_part_anew(ws, other)
    unregistered = 'd'*16                                                       # killed before it was entered
    about = dict(source_id=one['photo'], prompt_id='p', part='hand', mask=[.1, .1, .4, .4])
    ws.append('redrawn', [about | dict(image_id=unregistered)])
    stray = ws.image_file('redrawn', unregistered)
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b'half a picture')
    freeze_local(ws, mine)
    needles = [*traces_of_anew(ws, mine), unregistered, one['photo']]
    assert all(grep(ws.root, n) for n in needles)
    gone = forget(ws, mine, app=False, progress=quiet)                           # the loser leads to the photo too
    assert {mine, unregistered} <= {*gone.traces.images} and gone.traces.photo == one['photo']
    assert grep(ws.root, *needles) == [] and not gone.proof.found
    assert gone.traces.splits['v1']['local'] == 1 and 'broken by removal' in str(gone)
    assert read_json(ws.root/'splits'/'v1'/'split.json')['content']['local'] == 'broken by removal'
    assert [*ws.table('redrawn').image_id] == [theirs] and [*person_boxes(ws).image_id] == [other]
    assert [*ws.table('images').query("domain == 'redrawn'").image_id] == [theirs]
    assert [*ws.table('pairs').query("stage == 'local'").loser_id] == [theirs]


@pytest.mark.parametrize('label,n', [('taking out', 2), ('rewriting', 20), ('taking out', 4)])
def test_a_part_generated_anew_while_a_removal_is_interrupted_goes_too(finished, copy_of, label, n):
    ws = copy_of(finished)
    one = winner(ws)
    early, facts = with_a_part_anew(ws, one['photo']), ws.table('images').set_index('image_id').loc[one['photo']]
    needles = traces_of_anew(ws, early)
    with pytest.raises(KeyboardInterrupt): forget(ws, one['photo'], app=False, progress=stop_at(label, n))
    # a process of an earlier version that read its work before writes another one now
    earlier = of_an_earlier_version(ws)
    if one['photo'] not in {*ws.table('images').image_id}:
        earlier.append('images', [facts.drop('written_at').to_dict() | dict(image_id=one['photo'])])
    late = with_a_part_anew(earlier, one['photo'], 700)
    freeze_local(ws, late)
    needles += traces_of_anew(ws, late)
    gone = forget(ws, app=False, progress=quiet)
    assert late in gone.traces.images and not gone.proof.found and grep(ws.root, *needles, one['photo']) == []
    assert not len(ws.table('redrawn')) and not (ws.root/PLAN).exists()
    assert gone.traces.splits['v1']['local'] == 1


def test_a_part_generated_anew_while_a_photo_is_taken_out_goes_too(finished, copy_of):
    ws = copy_of(finished)
    one = winner(ws)
    made = []
    def at_work(total, label): # another process, which adds one after the tables were rewritten
        def step(n):
            if label == 'rewriting' and not made and one['photo'] not in {*ws.table('scores').image_id}:
                row = dict(image_id='c'*16, source_id=one['photo'], prompt_id='p', part='hand', mask=[.1, .1, .4, .4])
                ws.append('redrawn', [row])
                made.append(ws.image_file('redrawn', 'c'*16))
                made[0].parent.mkdir(parents=True, exist_ok=True)
                made[0].write_bytes(b'a picture that was not entered yet')
        return step
    gone = forget(ws, one['photo'], app=False, progress=at_work)
    assert made and not made[0].exists() and not gone.proof.found and grep(ws.root, 'c'*16, one['photo']) == []


@pytest.fixture
def drawn(tmp_path):
    "Four drawn people; nothing is made of them yet."
    from hgdpo_curate.toy.drawings import export_photos
    ws = create_workspace(tmp_path/'ws', resolution='40x56', steps=2, test_share=0.)
    import_photos(ws, export_photos(tmp_path/'photos', 4), progress=plain)
    return ws, ws.table('images').query("domain == 'real'").reset_index(drop=True)


def noise():
    from PIL import Image
    return Image.effect_noise((40, 56), 60).convert('RGB')


def test_a_picture_that_a_killed_process_left_without_a_row_goes_and_one_that_is_being_stored_stays(drawn):
    ws, photos = drawn
    near_copy = ws.open_image(photos.path[0])
    near_copy.paste((200, 30, 30), (5, 20, 15, 30))
    stray = ws.root/ws.save_image(near_copy, 'redrawn', 'e'*16)['path']
    busy = ws.root/ws.save_image(noise(), 'generated', 'f'*16)['path']
    with Leases(ws.root/'cache'/'leases') as leases:
        leases.take(['f'*16])
        gone = forget(ws, photos.image_id[0], app=False, progress=quiet)
        assert not stray.exists() and str(stray.relative_to(ws.root)) in gone.done and busy.exists()
        assert 'storing 1 image just then' in str(gone)
        (ws.root/'app_outdated.json').unlink()
        with pytest.raises(UsageError, match='no interrupted removal'): forget(ws, app=False, progress=quiet)
    assert [*forget(ws, app=False, progress=quiet).done] == [str(busy.relative_to(ws.root))] and not busy.exists()


@pytest.mark.parametrize('earlier', [False, True])
def test_what_is_entered_before_the_tables_are_rewritten_goes_and_the_removal_ends(drawn, earlier):
    ws, photos = drawn
    photo, prompt, late, visits = photos.image_id[0], photos.prompt_id[0], [], []
    other = of_an_earlier_version(ws) if earlier else open_workspace(ws.root)
    def enter(domain):
        row = other.save_image(noise(), domain, f'{len(late):016x}', prompt_id=prompt)
        late.append(ws.root/row['path'])
        if domain == 'redrawn':
            about = dict(source_id=photo, prompt_id=prompt, part='hand', mask=[.1, .1, .2, .2])
            other.append('redrawn', [about | dict(image_id=row['image_id'])])
        entered = other.append('images', [row])
        return entered and other.append('scores', [dict(image_id=row['image_id'], scorer='s')])
    def at_work(total, label):
        if label == 'rewriting':
            visits.append(label)
            # an earlier version goes on for a while, this one drops what it makes
            if len(visits) == 1 or not earlier: assert enter('generated') == enter('redrawn') == earlier
        return lambda n: None
    gone = forget(ws, photo, app=False, progress=at_work)
    assert len(visits) == 1 + earlier and len(late) == 2 and not any(f.exists() for f in late)
    assert not gone.proof.found and grep(ws.root, photo, prompt, *(f.stem for f in late)) == []


def test_parts_that_are_put_together_while_a_photo_is_taken_out_do_not_bring_it_back(drawn, monkeypatch):
    from threading import Thread
    from hgdpo_curate import parts
    ws, photos = drawn
    for n in range(3): ws.append('scores', [dict(image_id=i, scorer=f's{n}', score=1.) for i in photos.image_id])
    write, running = parts._write_part, []
    def slow(path, schema, tables, **metadata):
        tables = [*tables]                                                     # read before the removal
        if 'scores' in str(path):
            running.append(Thread(target=forget, args=[ws, photos.image_id[0]], kwargs=dict(app=False, progress=quiet)))
            running[0].start()
            running[0].join(2)
        write(path, schema, tables, **metadata)
    monkeypatch.setattr(parts, '_write_part', slow)
    assert Table(ws.root/'tables'/'scores', ws._table('scores').schema).compact() == 0
    running[0].join()
    assert grep(ws.root, photos.image_id[0]) == [] and len(ws.table('scores')) == 9 and not (ws.root/PLAN).exists()


def test_a_second_removal_waits_for_the_first(drawn):
    from threading import Thread
    ws, photos = drawn
    one, two = photos.image_id[:2]
    second = Thread(target=forget, args=[ws.root, two], kwargs=dict(app=False, progress=quiet))
    def at_work(total, label):
        if label == 'searching':
            second.start()
            second.join(.5)
            assert second.is_alive() and read_json(ws.root/PLAN)['traces']['photo'] == one
        return lambda n: None
    forget(ws, one, app=False, progress=at_work)
    second.join()
    assert grep(ws.root, one, two) == [] and len(ws.table('tombstones')) == 2 and not (ws.root/PLAN).exists()


def test_nothing_is_written_about_a_removed_photo_by_whoever_still_has_its_id(drawn):
    from hgdpo_curate.curate.reviews import decide, flag_images_by_hand
    ws, photos = drawn
    photo, prompt = photos.image_id[0], photos.prompt_id[0]
    read_before = open_workspace(ws.root)
    ids = [*photos.image_id[:2]]
    forget(ws, photo, app=False, progress=quiet)
    assert decide(read_before, ids, 'reject', 'a') == 1 and flag_images_by_hand(read_before, ids, 'bad_hand') == 1
    for table in ('photo_facts', 'duplicates', 'detections', 'scores', 'prompts'):
        columns = {c: photo for c in ws._table(table).schema.columns if c in ('image_id', 'other_id', 'real_image_id')}
        assert read_before.append(table, [columns | ({'prompt_id': 'new'} if table == 'prompts' else {})]) == 0, table
    assert grep(ws.root, photo, prompt) == []


def test_features_and_latents_that_were_being_computed_are_not_kept(drawn, monkeypatch):
    from types import SimpleNamespace
    import torch
    from hgdpo_curate.evaluate.features import features_of
    from hgdpo_curate.judge.flag_features import fill_features
    from hgdpo_curate.train import cache
    ws, photos = drawn
    texts = ws.table('prompts').set_index('prompt_id').prompt[photos.prompt_id]
    def losing(n): # what an encoder gives, while the n-th photo is removed
        def encode(*given, **more):
            photo = photos.image_id[n]
            if photo in {*ws.table('images').image_id}: forget(ws, photo, app=False, progress=quiet)
            return [torch.zeros(1, 4, 7, 5)]*len(given[2]) if len(given) > 1 else [[0., 1.]]*len(given[0])
        return encode
    extractor = SimpleNamespace(name='seen', version='1', extract=losing(0))
    with pytest.raises(UserError, match='removed from the workspace meanwhile'):
        features_of(ws, photos, extractor, progress=quiet)
    extractor = SimpleNamespace(name='seen', version='1', extract=losing(1))
    assert {*fill_features(ws, photos[1:], extractor, quiet).read(photos.image_id).image_id} == {*photos.image_id[2:]}
    monkeypatch.setattr(cache, 'encode_posteriors', losing(2))
    monkeypatch.setattr(cache, '_encode_new', lambda pipe, texts, known: {
        f'{cache.prompt_key(t)}.prompt_embeds': torch.zeros(1) for t in texts
    })
    monkeypatch.setattr('hgdpo_curate.pipelines.count_truncated', lambda pipe, texts: 0)
    filled = cache.TrainingCache(ws, 'm')
    filled.fill(None, dict(zip(photos.sha256[2:], photos.path[2:])), texts[2:], progress=quiet)
    assert [*filled.latents.at] == [photos.sha256[3]] and len(filled.prompts.at) == 1
    with pytest.raises(UserError, match='run the same command again'): filled.latents.stack(photos.sha256)
    keys = [cache.prompt_key(texts.iloc[2])]
    assert grep(ws.root, *photos.image_id[:3], photos.sha256[2], *keys) == []


def test_a_training_that_goes_on_ends_and_is_named_and_its_pictures_do_not_come_back(finished, copy_of):
    from hgdpo_curate import train_curriculum
    ws = copy_of(finished)
    one, steps = winner(ws), []
    def at_work(total, label):
        def step(n):
            if label.startswith('training'): steps.append(n)
            if len(steps) == 2 and not (ws.root/REGISTER).exists(): forget(ws, one['photo'], app=False, progress=quiet)
        return step
    how = dict(preset='mannequin', control='easy_only', train_batch_size=2, max_train_steps=6, checkpointing_steps=4)
    with pytest.raises(UserError, match='trains on was removed'):
        train_curriculum(ws, run='late', progress=at_work, report_to='none', **how)
    assert len(steps) == 4 and not [*(ws.root/'runs'/'late').rglob('done.json')]
    assert read_json(ws.root/REGISTER)[0]['runs']['late'] == 'trained on it'
    assert grep(ws.root, one['photo'], one['prompt'], one['winner'], one['pair']) == []
    assert not [*(ws.root/'runs'/'late').rglob('*.png')]


def test_a_split_that_was_being_frozen_is_not_written(finished, copy_of, monkeypatch):
    from hgdpo_curate.curate import splits
    ws = copy_of(finished)
    one, write = winner(ws), splits._write_pairs
    def losing(folder, pieces):
        write(folder, pieces)
        forget(ws, one['photo'], app=False, progress=quiet)
    monkeypatch.setattr(splits, '_write_pairs', losing)
    choices = load_split(ws).info
    with pytest.raises(UserError, match='removed while the split was frozen'):
        splits.freeze_split(ws, 'late', choices.scorer, **choices.choices)
    assert ws.names('splits') == ['v1'] and grep(ws.root, one['photo'], one['prompt'], one['winner'], one['pair']) == []


def test_a_picture_with_a_part_anew_is_never_without_the_row_that_says_so(finished, copy_of, monkeypatch):
    from hgdpo_curate.document.contents import prompts_of, redrawn_by_part
    from hgdpo_curate.images.redraw import redraw_parts
    from hgdpo_curate.pipelines import load_pipeline
    ws = copy_of(finished)
    prompts = ws.table('prompts')[['prompt_id', 'prompt']]
    photo = ws.table('images').query("domain == 'real'").merge(prompts, on='prompt_id').iloc[:1]
    mask = [(.1, .3, .6, .8)]
    parts = photo.rename(columns=dict(image_id='source_id')).assign(part='box', side='', drawn_by='anna', mask=mask)
    pipe, save = load_pipeline(ws.base_model, 'cpu'), ws.save_image
    def redraw(): return redraw_parts(ws, pipe, parts, {500: 500}, ('base', 2, 1.), progress=quiet)
    def full(*given, **facts): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(ws, 'save_image', full)
    with pytest.raises(OSError, match='No space'): redraw()
    rows, data = ws.table('redrawn'), load_split(ws)
    assert len(rows) and not (ws.table('images').domain == 'redrawn').any()
    assert redrawn_by_part(ws, prompts_of(data), data) == []
    monkeypatch.setattr(ws, 'save_image', save)
    assert redraw() == 1
    drawn = ws.table('images').query("domain == 'redrawn'").image_id
    assert set(rows.image_id) <= set(drawn) == set(ws.table('redrawn').image_id)
    assert sum(row['images'] for row in redrawn_by_part(ws, prompts_of(data), data)) == 1
