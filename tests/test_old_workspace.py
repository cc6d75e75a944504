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

from hgdpo_curate import forget, load_split, open_workspace, sample_images, workspace_status
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
    assert ws.config['format'] == 2 and len(ws.id) == 16 and (folder/'README.md').exists()
    assert [*ws.table('reviews').decision] == ['approve']
    for table, schema in SCHEMAS.items():
        for part in ws.parts(table): assert pq.read_schema(part).equals(arrow_schema(schema)), part
    written = {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}
    assert open_workspace(folder).id == ws.id
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()} == written


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
