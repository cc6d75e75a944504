"""A workspace that version 0.1 wrote is opened, drawn from and forgotten from by this one."""
import os
import subprocess
import sys
import tarfile
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, quiet

from hgdpo_curate import forget, load_split, open_workspace, sample_images, score_images, UserError, workspace_status
from hgdpo_curate.curate.reviews import newest_choices
from hgdpo_curate.curate.splits import pairs_of
from hgdpo_curate.document.licences import components, measured_with
from hgdpo_curate.files import write_json
from hgdpo_curate.runs import RunConfig
from hgdpo_curate.tables import arrow_schema, SCHEMAS


def unpack(folder):
    with tarfile.open(ROOT/'tests'/'data'/'people-0.1.tar.xz') as tar: tar.extractall(folder, filter='data')
    return folder/'people'


@pytest.fixture(scope='module')
def packed(tmp_path_factory): return unpack(tmp_path_factory.mktemp('old'))


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


@pytest.mark.parametrize('renamed', [False, True])
def test_a_relative_path_leads_to_the_users_own_file_wherever_one_stands(renamed, tmp_path, monkeypatch):
    "It was written as `people/photos/00000.png`, from the folder that the workspace lay in."
    folder = unpack(tmp_path)
    if renamed: folder = folder.rename(tmp_path/'folk')
    elsewhere = tmp_path/'elsewhere'/'people'/'photos'
    elsewhere.mkdir(parents=True)
    for n in range(8): (elsewhere/f'{n:05d}.png').write_bytes(b'of another person')
    monkeypatch.chdir(tmp_path/'elsewhere')
    ws = open_workspace(folder)
    photo = ws.table('photo_facts').set_index('original_path').image_id['people/photos/00000.png']
    own = {p: p.read_bytes() for p in (folder/'photos').iterdir()}
    said = str(forget(ws, photo, app=False, progress=quiet))
    assert f'Your own file {folder}/photos/00000.png was not changed' in said and 'nothing of it is left' in said
    assert str(elsewhere) not in said and 'Version 0.1' not in said
    assert {p: p.read_bytes() for p in (folder/'photos').iterdir()} == own


def test_a_relative_path_that_leads_nowhere_is_said(tmp_path, monkeypatch):
    import shutil
    folder = unpack(tmp_path)
    shutil.rmtree(folder/'photos')
    monkeypatch.chdir(tmp_path)
    (folder/'photos').mkdir()
    ws = open_workspace(folder)
    photo = ws.table('photo_facts').set_index('original_path').image_id['people/photos/00000.png']
    drawn = ws.table('images').query("domain == 'generated'").path.iloc[0]
    shutil.copy(ws.root/drawn, folder/'photos'/'00000.png')               # another picture of that name
    said = str(forget(ws, photo, dry_run=True, progress=quiet))
    assert 'Version 0.1 wrote down your own file as people/photos/00000.png' in said and 'Your own file' not in said


def test_it_is_rewritten_once_and_the_last_decision_still_wins(tmp_path):
    folder = unpack(tmp_path)
    reviews = sorted((folder/'tables'/'reviews').glob('*.parquet'))
    rows = pq.read_table(reviews[-1]).to_pylist()
    # an older decision whose time, written in another zone, is the larger text
    earlier = datetime.fromisoformat(rows[-1]['at']) - timedelta(hours=1)
    old = dict(rows[-1], decision='reject', at=earlier.astimezone(timezone(timedelta(hours=14))).isoformat())
    assert old['at'] > rows[-1]['at']
    pq.write_table(pa.Table.from_pylist([old]), reviews[-1].with_name('part-9-late.parquet'))
    ws = open_workspace(folder)
    assert ws.config['format'] == 3 and len(ws.id) == 16 and (folder/'README.md').exists()
    assert [*ws.table('reviews').decision] == ['approve']
    for table, schema in SCHEMAS.items():
        for part in ws.parts(table): assert pq.read_schema(part).equals(arrow_schema(schema)), part
    written = {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}
    assert open_workspace(folder).id == ws.id
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()} == written


def test_its_scores_and_detections_are_found_under_the_names_of_today(tmp_path):
    folder = unpack(tmp_path)
    def written(table, column): # pairs of image and name, as the files have them
        parts = sorted((folder/'tables'/table).glob('*.parquet'))
        return [(r['image_id'], r[column]) for p in parts for r in pq.ParquetFile(p).read().to_pylist()]

    scores, detections = written('scores', 'scorer'), written('detections', 'detector')
    assert {n for _, n in scores} == {'tiny'} and {n for _, n in detections} == {'tiny_faults'}
    split = {f: f.read_bytes() for f in (folder/'splits').rglob('*') if f.is_file()}
    ws = open_workspace(folder)
    assert written('scores', 'scorer') == [(i, 'smallscore') for i, _ in scores]             # no row lost or doubled
    assert written('detections', 'detector') == [(i, 'drawn_faults') for i, _ in detections]
    assert score_images(ws, progress=quiet) == score_images(ws, 'tiny', progress=quiet) == 0   # all are scored already
    assert {f: f.read_bytes() for f in split} == split and load_split(ws).info.scorer == 'smallscore'
    assert newest_choices(ws)['scorer'] == 'smallscore'
    chosen = [pairs_of(ws, s)['easy'] for s in ('smallscore', 'tiny')]
    assert len(chosen[0]) and chosen[0].equals(chosen[1])


def test_what_its_run_rests_on_is_named_as_today(packed, copy_of):
    ws = copy_of(open_workspace(packed))
    config = RunConfig.of(ws.root/'runs'/'first')
    named = {n for ms in measured_with(ws, config).values() for n in (m['name'] for m in ms)}
    assert 'tiny' in (ws.root/'runs'/'first'/'evaluation'/'measured_by.json').read_text()
    assert {'smallscore', 'evaluator'} <= named and not [n for n in named if 'tiny' in n]
    parts = [c for c in components(ws, config, load_split(ws), {}) if c['part'] in ('scorer', 'detector', 'metric')]
    assert ('scorer', 'smallscore') in [(c['part'], c['name']) for c in parts]
    assert {c['stated'] for c in parts} == {'this package'}


def test_of_a_later_format_that_cannot_be_written_the_rows_are_found_all_the_same(tmp_path, monkeypatch):
    from hgdpo_curate import workspace
    ws = open_workspace(unpack(tmp_path))
    file = ws.parts('scores')[0]
    rows = pq.read_table(file).to_pylist()
    old = pa.Table.from_pylist([dict(r, scorer='tiny') for r in rows], schema=arrow_schema(SCHEMAS['scores']))
    pq.write_table(old, file)
    settings = ws.root/'workspace.toml'
    settings.write_text(settings.read_text().replace('format = 3', 'format = 2'))
    def refuse(*_): raise PermissionError(13, 'Permission denied')
    with monkeypatch.context() as patched:
        patched.setattr(workspace, 'migrate', refuse)
        kept = open_workspace(ws.root)
    assert kept.id == ws.id and {*kept.table('scores').scorer} == {'smallscore'}
    assert {r['scorer'] for r in pq.read_table(file).to_pylist()} == {'tiny'}
    assert open_workspace(ws.root).config['format'] == 3
    assert {r['scorer'] for r in pq.read_table(file).to_pylist()} == {'smallscore'}


def test_rows_of_a_model_of_ones_own_are_not_mixed_with_those_of_the_package(tmp_path):
    folder = unpack(tmp_path)
    write_json(folder/'registered.json', {'scorer smallscore': dict(what='mine')})
    with pytest.raises(UserError, match="your own scorer 'smallscore'"): open_workspace(folder)
    assert 'format' not in (folder/'workspace.toml').read_text()


def test_stopped_while_it_is_rewritten_the_next_opening_goes_on(tmp_path, monkeypatch):
    from hgdpo_curate import workspace
    folder = unpack(tmp_path)
    migrate, done = workspace.migrate, []
    def dying(table, schema):
        if len(done) == 3: raise KeyboardInterrupt
        done.append(migrate(table, schema))
    monkeypatch.setattr(workspace, 'migrate', dying)
    with pytest.raises(KeyboardInterrupt): open_workspace(folder)
    assert 'format' not in (folder/'workspace.toml').read_text()
    monkeypatch.setattr(workspace, 'migrate', migrate)
    ws = open_workspace(folder)
    assert len(ws.table('images').query("domain == 'real'")) == 8 and [*ws.table('reviews').decision] == ['approve']
    assert not [p for p in folder.rglob('.*.tmp*')]


def test_where_it_cannot_be_written_it_is_refused_in_one_sentence(tmp_path):
    folder = unpack(tmp_path)
    for p in [folder, *folder.rglob('*')]: p.chmod(0o555 if p.is_dir() else 0o444)
    code = (
        'import os, sys\n'
        'from hgdpo_curate import UserError, open_workspace, workspace_status\nimport pandas, pyarrow.parquet, '
        'filelock\n'
        'if os.getuid() == 0: os.setuid(65534)\n'  # nothing is read-only for root
        'try: open_workspace(sys.argv[1])\nexcept UserError as e: print(e)\n'
    )
    for up in [folder, *folder.parents][:6]:
        if os.getuid() == 0 and not up.stat().st_mode & 0o001: up.chmod(up.stat().st_mode | 0o011)
    done = subprocess.run([sys.executable, '-c', code, str(folder)], capture_output=True, text=True, timeout=60)
    assert 'must be rewritten once' in done.stdout and 'writable' in done.stdout, done.stdout + done.stderr[-2000:]
    for p in [folder, *folder.rglob('*')]: p.chmod(0o755)


def test_it_has_no_parts_generated_anew_and_everything_that_counts_them_works(packed, copy_of):
    from hgdpo_curate.curate.labels import draw_boxes, person_boxes
    from hgdpo_curate.curate.reviews import sample_rows
    from hgdpo_curate.document.contents import prompts_of, redrawn_by_part
    ws = copy_of(open_workspace(packed))
    assert not len(ws.parts('redrawn')) and not len(ws.table('redrawn')) and not len(person_boxes(ws))
    assert redrawn_by_part(ws, prompts_of(load_split(ws)), load_split(ws)) == []
    rows = sample_rows(ws)
    assert len(rows) and rows[['local', 'local_pair', 'redrawn_part', 'redrawn_from']].isna().all(None)
    assert 'photos' in workspace_status(ws) and 'reconstructions' in ws._repr_html_()
    photo = rows.image_id[rows.domain == 'real'].iloc[0]
    draw_boxes(ws, photo, [('hand', [4, 4, 10, 10])], 'anna')
    assert [*person_boxes(ws).kind] == ['hand'] and 'nothing of it is left' in str(
        forget(ws, photo, app=False, progress=quiet)
    )
    assert not len(person_boxes(ws))
