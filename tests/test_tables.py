"""A table says the same by pandas and by SQL, before and after its parts are put together, beside other processes."""
import json
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from hgdpo_curate import create_workspace, open_workspace, UserError, workspace_status
from hgdpo_curate.parts import is_compacted, run_sql, Table
from hgdpo_curate.tables import from_arrow, SCHEMAS

BEGUN = datetime(2026, 1, 1, tzinfo=timezone.utc)
row = st.fixed_dictionaries(
    dict(
        image_id=st.sampled_from(['a', 'b', 'c']),
        flag=st.sampled_from(['bad_hand', 'ok']),
        part=st.sampled_from([None, '', 'arm']),
        written_at=st.none() | st.integers(0, 3).map(lambda n: BEGUN + timedelta(seconds=n)),     # many ties
        confidence=st.none() | st.floats(0, 1),
    )
)


def written(folder, schema, parts):
    "A table whose parts hold just these rows, a missing time included, as no `append` would write it."
    from hgdpo_curate.parts import _write_part
    from hgdpo_curate.tables import to_arrow
    for n, rows in enumerate(parts):
        table = to_arrow(pd.DataFrame(rows), schema)
        _write_part(folder/f'part-{n:020d}-abcdef.parquet', schema, [table])
    return Table(folder, schema)


def last_rows(table):
    "The last row of every key, read part by part and row by row in plain Python."
    rows = [r for p in table.parts() for r in pq.read_table(p).to_pylist()]
    long_ago = datetime(1, 1, 1, tzinfo=timezone.utc)
    rows.sort(key=lambda r: r['written_at'] or long_ago)
    return {tuple(r[k] for k in table.schema.key): r for r in rows}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(row, min_size=1, max_size=5), min_size=1, max_size=4), st.booleans())
def test_pandas_and_sql_say_the_same_and_still_do_when_parts_are_put_together(tmp_path_factory, parts, keeps):
    from dataclasses import replace
    schema = replace(SCHEMAS['flags'], keeps_history=keeps)
    table = written(tmp_path_factory.mktemp('t')/'flags', schema, parts)
    expected, history = last_rows(table), table.read(history=True)
    def check():
        by_pandas, key = table.read(), list(schema.key)
        by_sql = from_arrow(run_sql(dict(flags=table), 'select * from flags'))
        found = {tuple(None if v != v else v for v in r): t for *r, t in by_pandas[[*key, 'confidence']].values}
        assert found.keys() == expected.keys()
        assert all(pd.isna(t) if expected[k]['confidence'] is None else t == expected[k]['confidence']
                   for k, t in found.items())
        pd.testing.assert_frame_equal(
            by_pandas.sort_values(key).reset_index(drop=True), by_sql.sort_values(key).reset_index(drop=True)
        )
        return by_pandas
    before = check()
    gone, many = table.compact(), len(parts) > 1
    assert len(table.parts()) == 1 and gone == (0 if keeps or not many else len(history) - len(before))
    pd.testing.assert_frame_equal(check(), before)
    if keeps: pd.testing.assert_frame_equal(table.read(history=True), history)


def test_a_part_without_a_column_of_today_is_read_by_both(tmp_path):
    ws = create_workspace(tmp_path/'ws')
    ws.append('images', [dict(image_id='a', domain='real')])
    old = ws.parts('images')[0]
    pq.write_table(pq.read_table(old).drop_columns(['bytes']), old)
    assert ws.table('images').bytes.isna().tolist() == [True]
    assert ws.sql('select * from images').equals(ws.table('images'))
    ws.append('images', [dict(image_id='b', domain='real', bytes=7)])
    assert ws.sql('select sum(bytes) as n from images').n.tolist() == [7]


def test_names_of_tables_have_no_case_in_sql(tmp_path):
    ws = create_workspace(tmp_path/'ws')
    ws.append('images', [dict(image_id='a', domain='real')])
    ws.append('scores', [dict(image_id='a', scorer='x', scorer_version='1', score=1.)])
    assert ws.sql('from IMAGES').image_id.tolist() == ['a']
    assert ws.sql('SELECT score FROM Images JOIN Scores USING (image_id)').score.tolist() == [1.]


def test_lists_times_and_json_come_back_from_sql(tmp_path):
    ws = create_workspace(tmp_path/'ws')
    ws.append('photo_facts', [dict(image_id='a', box=[1, 2, 3, 4.5], copies=['x'], attributes=dict(hair='red'))])
    one = ws.sql("select *, attributes->>'hair' as hair from photo_facts where image_id = ?", 'a').iloc[0]
    assert one.box == [1, 2, 3, 4.5] and one.copies == ['x'] and one.hair == 'red'
    assert json.loads(one.attributes) == dict(hair='red') and one.written_at == ws.table('photo_facts').written_at[0]


def test_what_a_caller_changes_in_a_table_is_not_read_again(tmp_path):
    ws = create_workspace(tmp_path/'ws')
    ws.append('scores', [dict(image_id='a', scorer='x', score=1.0)])
    mine = ws.table('scores')
    mine['score'] = 9.0
    mine.loc[0, 'scorer'] = 'y'
    assert ws.table('scores').score.tolist() == [1] and ws.table('scores').scorer.tolist() == ['x']
    ws.append('scores', [dict(image_id='a', scorer='x', score=2.0)])
    assert ws.table('scores').score.tolist() == [2] and ws.table('scores', columns=['image_id']).shape == (1, 1)


def test_counts_are_kept_and_follow_every_change(tmp_path):
    ws = create_workspace(tmp_path/'ws')
    assert ws.counts().empty and 'scores          0 rows' in workspace_status(ws)
    ws.append('prompts', [dict(prompt_id='p', prompt='x', real_image_id='a', fold='train')])
    ws.append('images', [dict(image_id=i, prompt_id='p', domain='real') for i in 'ab'])
    ws.append('images', [dict(image_id='a', prompt_id='gone', domain='real')])
    assert ws.counts().values.tolist() == [['real', '', 1], ['real', 'train', 1]]
    kept = ws.root/'cache'/'counts.json'
    written_at = kept.stat().st_mtime_ns
    assert open_workspace(ws.root).counts().equals(ws.counts()) and kept.stat().st_mtime_ns == written_at
    kept.write_text('[1')                                       # as a crash of the disk would leave it
    assert len(ws.counts()) == 2
    ws.append('prompts', [dict(prompt_id='gone', prompt='x', real_image_id='a', fold='test')])
    assert ws.counts().values.tolist() == [['real', 'test', 1], ['real', 'train', 1]]


def test_a_broken_part_is_named_and_an_error_of_the_query_is_duckdbs(tmp_path):
    import duckdb
    ws = create_workspace(tmp_path/'ws')
    ws.append('scores', [dict(image_id='a', scorer='x', score=1.0)])
    with pytest.raises(duckdb.Error, match='nonsense'): ws.sql('select nonsense from scores')
    ws.parts('scores')[0].with_name('part-9.parquet').write_bytes(b'PAR1 broken')
    for read in (lambda: ws.sql('select * from scores'), lambda: ws.table('scores'), lambda: ws.compact('scores')):
        with pytest.raises(UserError, match='scores/part-9.parquet cannot be read .*then its images are scored again'):
            read()


@pytest.mark.parametrize('name', SCHEMAS)
def test_what_deleting_a_half_written_part_costs_is_said_for_every_table(tmp_path, name):
    table = Table(tmp_path/name, SCHEMAS[name])
    table.append([{c: 'a' for c in SCHEMAS[name].key if SCHEMAS[name].columns[c] == 'str'}])
    part = table.parts()[0]
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match=f'{part.name} cannot be read .*or delete it: then') as e: table.read()
    assert 'its rows are lost' not in str(e.value)         # what stands for a table of which nobody said more


def test_killed_before_the_old_parts_are_deleted_nothing_counts_twice(tmp_path, monkeypatch):
    from pathlib import Path
    ws = create_workspace(tmp_path/'ws')
    for n in range(5): ws.append('reviews', [dict(subject_id='a', reviewer='ana', note=str(n))])
    before, parts = ws.table('reviews', history=True), ws.parts('reviews')
    def dies(path, **kw): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Path, 'unlink', dies)
        with pytest.raises(KeyboardInterrupt): ws.compact('reviews')
    assert len([*(ws.root/'tables'/'reviews').glob('part-*')]) == 6 and len(ws.parts('reviews')) == 1
    assert is_compacted(ws.parts('reviews')[0]) and parts[0].exists()
    assert ws.table('reviews', history=True).equals(before)
    assert ws.sql('select count(*) as n from reviews').n.tolist() == [1]
    ws.append('reviews', [dict(subject_id='a', reviewer='ana', note='5')])
    ws.compact('reviews')
    assert ws.table('reviews', history=True).note.tolist() == [*'012345']


WRITER = '''
import sys, time
from hgdpo_curate import open_workspace
ws, who = open_workspace(sys.argv[1]), sys.argv[2]
print('ready', flush=True)
for n in range(int(sys.argv[3])): ws.append('reviews', [dict(subject_id=f'{who}{n}', reviewer=who, note=str(n))])
'''


def test_two_processes_append_and_put_parts_together_while_a_third_reads(tmp_path, monkeypatch):
    ws = create_workspace(tmp_path/'ws')
    code = WRITER.replace('ws, who', 'from hgdpo_curate.parts import Table\nTable.most_parts = 12\nws, who')
    writers = [
        subprocess.Popen([sys.executable, '-c', code, str(ws.root), who, '150'], stdout=subprocess.PIPE) for who in 'ab'
    ]
    for w in writers: w.stdout.readline()
    seen = 0
    while any(w.poll() is None for w in writers):
        rows = ws.table('reviews', history=True)
        assert rows.subject_id.is_unique and len(rows) >= seen           # none twice, none lost
        assert len(ws.sql('select * from reviews')) >= len(rows)
        seen = len(rows)
    assert [w.wait() for w in writers] == [0, 0]
    rows = ws.table('reviews', history=True)
    assert len(rows) == 300 and rows.subject_id.nunique() == 300 and len(ws.parts('reviews')) < 60


@pytest.mark.parametrize('moment', [.05, .2, .5])
def test_killed_while_appending_all_that_was_appended_before_is_there(tmp_path, moment):
    ws = create_workspace(tmp_path/'ws')
    code = WRITER.replace('ws, who', 'from hgdpo_curate.parts import Table\nTable.most_parts = 5\nws, who').replace(
        "note=str(n))])", "note=str(n))]); print(n, flush=True)"
    )
    writer = subprocess.Popen([sys.executable, '-c', code, str(ws.root), 'a', '100000'], stdout=subprocess.PIPE)
    writer.stdout.readline()
    writer.stdout.readline()
    time.sleep(moment)
    writer.send_signal(signal.SIGKILL)
    said = [int(n) for n in writer.stdout.read().split() if n.isdigit()]
    writer.wait()
    notes = ws.table('reviews', history=True).note.astype(int).tolist()
    assert notes == [*range(len(notes))] and len(notes) >= (said[-1] + 1 if said else 1)


# --- which flags stand: by columns, held against the rules said row by row

def stand(flags):
    "The rules of `standing_flags`, one row after another."
    long_ago = datetime(1970, 1, 1, tzinfo=timezone.utc)
    people = flags[flags.source == 'human'].drop_duplicates(['image_id', 'flag', 'part', 'side'], keep='last')
    spoken = {(r.image_id, r.flag) for r in people.itertuples()}
    fine = {r.image_id for r in people.itertuples() if r.status == 'confirmed' and r.flag == 'ok'}
    def last(chosen): return max([r.written_at for r in people.itertuples() if chosen(r)], default=long_ago)
    def stands(f):
        if f.source != 'human':
            return f.status == 'proposed' and (f.image_id, f.flag) not in spoken and f.image_id not in fine
        if f.status != 'confirmed' or f.Index not in people.index: return False
        same = lambda r: r.image_id == f.image_id
        if f.written_at <= last(
            lambda r: same(r) and r.flag == f.flag and r.status == 'cleared' and not (r.part or r.side)
        ): return False
        if f.flag == 'ok': return f.written_at >= last(lambda r: same(r) and r.status == 'confirmed' and r.flag != 'ok')
        return f.written_at > last(lambda r: same(r) and r.status == 'confirmed' and r.flag == 'ok')
    return {f.Index for f in flags.itertuples() if stands(f)}


flag_row = st.tuples(
    st.sampled_from('abc'),
    st.sampled_from(['bad_hand', 'extra_limb', 'ok']),
    st.sampled_from(['proposed', 'confirmed', 'cleared']),
    st.sampled_from(['rule', 'human', 'human']),
    st.sampled_from(['', '', 'arm']),
    st.integers(0, 5).map(lambda n: BEGUN + timedelta(seconds=n)),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(flag_row, max_size=9).map(lambda rows: sorted(rows, key=lambda r: r[-1])))
def test_the_flags_that_stand_are_those_of_the_rules(rows):
    from hgdpo_curate.tables import standing_flags
    flags = pd.DataFrame(rows, columns=['image_id', 'flag', 'status', 'source', 'part', 'written_at']).assign(side='')
    flags['written_at'] = pd.to_datetime(flags.written_at, utc=True)
    assert set(standing_flags(flags).index) == stand(flags)
