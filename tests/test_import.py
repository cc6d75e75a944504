"""An import tells all that it does, and leaves nothing behind when it fails."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, plain

from hgdpo_curate import UserError, create_workspace, import_photos
from hgdpo_curate.cli import main
from hgdpo_curate.files import sweep_temporary
from hgdpo_curate.toy.drawings import draw_person, export_photos


def rows_of(folder): return [json.loads(x) for x in (folder/'metadata.jsonl').read_text().splitlines()]
def write(folder, rows): (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))


@pytest.fixture
def photos(tmp_path): return export_photos(tmp_path/'photos', 6, seed=4)


@pytest.fixture
def ws(tmp_path): return create_workspace(tmp_path/'ws', resolution='40x56')


def leftovers(ws): return [p for p in ws.root.rglob('*') if p.is_file() and ('.tmp' in str(p) or p.suffix == '.png')]


def test_a_relative_folder_is_kept_by_its_place(tmp_path, monkeypatch):
    one, other = tmp_path/'a'/'photos', tmp_path/'b'/'photos'
    export_photos(one, 2, seed=4)
    shutil.copytree(one, other)
    for folder, consent in ((one, 'withdrawn'), (other, 'yes')):
        write(folder, [r | dict(consent=consent) for r in rows_of(folder)])
    monkeypatch.chdir(tmp_path/'a')
    ws = create_workspace('ws', resolution='40x56')
    import_photos(ws, 'photos', progress=plain)
    monkeypatch.chdir(tmp_path/'b')
    import_photos('../a/ws', 'photos', progress=plain)
    from hgdpo_curate import open_workspace
    facts = open_workspace(tmp_path/'a'/'ws').table('photo_facts')
    assert set(facts.consent) == {'withdrawn'} and all(map(os.path.isabs, facts.original_path))
    assert {p for c in facts.copies for p in c} == {str(p) for p in other.glob('*.png')}
    # as older versions wrote it: the same words, typed elsewhere, are another place
    monkeypatch.chdir(tmp_path/'a')
    ws = open_workspace('ws')
    ws.append('photo_facts', facts.assign(original_path=[f'photos/{Path(p).name}' for p in facts.original_path]))
    monkeypatch.chdir(tmp_path/'b')
    import_photos('../a/ws', 'photos', progress=plain)
    assert set(open_workspace(tmp_path/'a'/'ws').table('photo_facts').consent) == {'withdrawn'}


def importing(ws, folder, body): # a process that imports, with `some(items)` to feed it
    code = f'''
import os, sys, time
from hgdpo_curate import import_photos
def some(items, **k):
{body}
import_photos({str(ws.root)!r}, {str(folder)!r}, progress=some)
'''
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True,
                            env=os.environ | dict(PYTHONPATH=str(ROOT)))


def test_what_a_killed_import_leaves_is_swept_and_what_a_living_one_writes_is_not(photos, ws):
    waits = "    yield from items[:3]\n    print('half', flush=True)\n    time.sleep(60)\n    yield from items[3:]"
    process = importing(ws, photos, waits)
    try:
        assert process.stdout.readline() == 'half\n'
        half = leftovers(ws)
        assert len(half) == 3 and not len(ws.table('images'))
        assert sweep_temporary(ws) == [] and leftovers(ws) == half              # it is alive
        (half[0].parent/'.0123abcd.tmp.png').write_bytes(b'half')               # in the middle of a picture
    finally: process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(leftovers(ws)) == 4
    (ws.root/'tables'/'images').mkdir(parents=True, exist_ok=True)
    old = ws.root/'tables'/'images'/'.89abcdef.tmp.parquet'                     # of an older version
    old.write_bytes(b'half')
    os.utime(old, (time.time() - 120,)*2)
    # its photo is not in the folder any more
    left = json.loads((photos/'metadata.jsonl').read_text().splitlines()[0])
    write(photos, [r for r in rows_of(photos) if r['file_name'] != left['file_name']])
    (photos/left['file_name']).unlink()
    import_photos(ws, photos, progress=plain)
    assert len(leftovers(ws)) == len(ws.table('images')) == 5 and not [
        p for p in ws.root.rglob('.*') if '.tmp' in p.name
    ]


def test_an_error_anywhere_in_an_import_leaves_nothing(photos, ws, tmp_path):
    def failing(images): raise RuntimeError('out of memory')
    with pytest.raises(RuntimeError): import_photos(ws, photos, embed=failing, progress=plain)
    assert not leftovers(ws) and not len(ws.table('photo_facts'))
    def stops(items, **k):
        yield from items[:3]
        raise ValueError('anything')
    settings = (ws.root/'workspace.toml').read_text()
    with pytest.raises(ValueError):
        import_photos(
            ws,
            photos,
            progress=stops,
            fit='pad',
            test_share=0.5,
        )
    assert (ws.root/'workspace.toml').read_text() == settings and ws.config['test_share'] == .05
    assert not leftovers(ws)
    # the second of three tables cannot be written
    (ws.root/'tables').mkdir()
    (ws.root/'tables'/'prompts').write_text('in the way')
    with pytest.raises(OSError): import_photos(ws, photos, progress=plain)
    (ws.root/'tables'/'prompts').unlink()
    assert not leftovers(ws) and not len(ws.table('photo_facts')) and not len(ws.table('images'))
    assert import_photos(ws, photos, progress=plain).imported == 6


def test_dates_and_other_values_among_attributes_are_kept_as_text(ws, tmp_path):
    import datetime
    import pandas as pd
    folder = tmp_path/'dated'
    folder.mkdir()
    for n in range(2): draw_person(n).pil().save(folder/f'{n}.png')
    taken = datetime.datetime(2024, 5, 1)
    rows = [
        dict(file_name=f'{n}.png', text=f'person {n}', attributes=dict(taken=taken, n=n, at=[taken.date()]))
        for n in range(2)
    ]
    pd.DataFrame(rows).to_parquet(folder/'metadata.parquet')
    assert import_photos(ws, folder, progress=plain).imported == 2
    kept = ws.table('photo_facts').attributes[0]
    assert kept['taken'].startswith('2024-05-01') and kept['n'] in (0, 1)


def test_a_photo_replaced_under_its_name_stops_the_import(photos, ws, capsys):
    import_photos(ws, photos, progress=plain)
    draw_person(99).pil().save(photos/'00002.png')
    flags = ['photos', '--workspace', str(ws.root), '--folder', str(photos)]
    assert main(flags) == 1
    told = capsys.readouterr().err
    assert '00002.png is not the picture' in told and '--replaced keep' in told and 'hgdpo forget' in told
    assert len(ws.table('images')) == 6
    assert main([*flags, '--skip_bad']) == 0 and len(ws.table('images')) == 6
    assert '00002.png is not the picture' in capsys.readouterr().out
    assert main([*flags, '--replaced', 'keep']) == 0 and len(ws.table('images')) == 7
    assert 'both pictures are kept (00002.png)' in capsys.readouterr().out
    assert main(flags) == 0                                                     # it is known now


def test_a_photo_that_is_gone_is_named_and_a_renamed_one_is_not(photos, ws):
    import_photos(ws, photos, progress=plain)
    (photos/'00000.png').unlink()
    (photos/'00001.png').rename(photos/'other.png')
    rows = rows_of(photos)[1:]
    rows[0]['file_name'] = 'other.png'
    write(photos, rows)
    report = import_photos(ws, photos, progress=plain)
    assert report.gone == ['00000.png'] and '00000.png' in str(report) and 'hgdpo forget' in str(report)


def test_a_copy_with_another_caption_and_a_shared_caption_file_are_named(ws, tmp_path):
    folder = tmp_path/'copies'
    folder.mkdir()
    for n in range(3):
        draw_person(n).pil().save(folder/f'{n}.png')
        (folder/f'{n}.txt').write_text(f'person {n}')
    shutil.copy(folder/'0.png', folder/'0b.png')
    (folder/'0b.txt').write_text('a much better caption')
    draw_person(7).pil().save(folder/'1.bmp')                                   # beside 1.png and its 1.txt
    told = str(import_photos(ws, folder, progress=plain))
    assert '0b.png is the same picture as 0.png' in told and 'a much better caption' in told
    assert '1.bmp, 1.png share one caption file' in told


def test_what_the_test_fold_can_show_is_told_at_the_import_and_can_be_changed(tmp_path, capsys):
    same = export_photos(tmp_path/'same', 8, seed=4)
    write(same, [r | dict(text='a photo of sks person') for r in rows_of(same)])
    ws = create_workspace(tmp_path/'sks', resolution='40x56')
    assert 'all 8 photos have the caption' in str(import_photos(ws, same, progress=plain))
    many = export_photos(tmp_path/'many', 120, seed=5)
    ws = create_workspace(tmp_path/'portraits', resolution='40x56')
    told = str(import_photos(ws, many, progress=plain))
    assert '6 of 120 prompts are held out' in told and 'hold out 30 with --test_share 0.25' in told
    flags = ['photos', '--workspace', str(ws.root), '--folder', str(many), '--test_share']
    assert main([*flags, '.25']) == 0 and 'held out' not in capsys.readouterr().out
    assert (ws.table('prompts').fold == 'test').sum() == 30
    ws.append(
        'images',
        [
            dict(
                image_id='x',
                domain='generated',
                prompt_id='p',
                path='x.png',
            )
        ],
    )
    assert main([*flags, '.2']) == 1 and 'new workspace' in capsys.readouterr().err
    assert main([*flags, '1.5']) == 2


def test_near_duplicates_are_named_with_their_distance_and_the_limit_can_be_given(tmp_path):
    photos = export_photos(tmp_path/'photos', 12, seed=4)
    ws = create_workspace(tmp_path/'ws', resolution='40x56', test_share=.25)
    report = import_photos(ws, photos, near=.4, progress=plain)
    assert report.near_duplicates > 5 and len(report.alike) == report.near_duplicates
    a, b, distance = report.alike[0]
    assert {a, b} <= {p.name for p in photos.glob('*.png')} and f'{a} and {b} ({distance:g})' in str(report)
    assert '--near 0.2' in str(report) and report._repr_html_().count(' and 0') >= len(report.alike)
    assert 'are grouped as near duplicates' in report.test
    stricter = import_photos(ws, photos, near=.02, progress=plain)
    assert stricter.near_duplicates < report.near_duplicates and stricter.near_duplicates == len(ws.table('duplicates'))
    assert 'grouped' not in stricter.test and (ws.table('prompts').fold == 'test').sum() == 3
    assert import_photos(ws, photos, progress=plain).near_duplicates == stricter.near_duplicates    # it is remembered
    with pytest.raises(UserError, match='between 0 and 1'): import_photos(ws, photos, near=8)


def test_the_next_step_is_named_also_after_a_second_folder(photos, tmp_path, capsys):
    place = tmp_path/'two words'
    ws = create_workspace(place, resolution='40x56', base_model='some/base', test_share=.3)
    flags = ['photos', '--workspace', str(place), '--folder']
    assert main([*flags, str(photos)]) == 0
    assert f"next: hgdpo pool --workspace '{place}'" in capsys.readouterr().out
    train = ws.table('prompts').query("fold == 'train'").prompt_id                # the pool draws no test prompts
    ws.append(
        'images',
        [
            dict(
                image_id=p,
                prompt_id=p,
                domain='generated',
                path=f'{p}.png',
            )
            for p in train
        ],
    )
    assert main([*flags, str(photos)]) == 0 and 'next: hgdpo recon' in capsys.readouterr().out
    assert main([*flags, str(export_photos(tmp_path/'more', 3, seed=9))]) == 0
    assert f"next: hgdpo pool --workspace '{place}'" in capsys.readouterr().out


def test_ctrl_c_in_the_first_moment_shows_no_traceback(tmp_path):
    "From the moment our own code is loaded; what Python does before is its own."
    # whoever starts the tests in the background may have the signal ignored
    code = ('import sys, os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); '
            'sys.argv[0] = "/bin/hgdpo"; import hgdpo_curate; '
            'os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)')
    done = subprocess.run(
        [sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True
    )
    assert done.returncode == 130 and 'Traceback' not in done.stderr and 'interrupted' in done.stderr
    code = code.replace(
        'import hgdpo_curate; ', 'from hgdpo_curate.cli import exit_code; sys.exit(exit_code(lambda: '
    ).replace(
        "os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)", 'os.kill(os.getpid(), signal.SIGINT) or 0))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True
    )
    assert done.returncode == 130 and 'finished work is kept' in done.stderr


def test_a_stated_column_is_a_flag_a_fact_a_field_of_the_app_and_a_line_of_the_card_by_its_row_alone(tmp_path):
    rows = rows_of(export_photos(tmp_path/'photos', 3, seed=3))
    write(tmp_path/'photos', [rows[0] | dict(Year='1987'), *rows[1:]])                 # its own metadata says
    code = '''
import sys
from hgdpo_curate.tables import Column, SCHEMAS
SCHEMAS['photo_facts'].fields['year'] = Column('int', 'when it was taken', stated=True, shown='photo')
from hgdpo_curate.cli import main
folder = sys.argv[1]
assert main(['photos', '--help']) == 0
assert main(['init', '--workspace', f'{folder}/w', '--resolution', '40x56']) == 0
photos = ['photos', f'{folder}/photos', '--workspace', f'{folder}/w']
assert main([*photos, '--year', 'old']) == 2
for year in ('1990', '1991'): assert main([*photos, '--year', year]) == 0
from hgdpo_curate.curate.reviews import sample_rows
from hgdpo_curate.curate.samples import FIELDS, SIDEBAR
from hgdpo_curate.document.contents import stated
from hgdpo_curate.workspace import open_workspace
ws = open_workspace(f'{folder}/w')
facts = ws.table('photo_facts')
assert sorted(facts.year) == [1987, 1991, 1991], facts.year
assert [v for v, *_ in stated(facts).further['year']] == ['1991', '1987']
assert FIELDS['year'] == 'int' and 'year' in SIDEBAR['photo']
assert sorted(sample_rows(ws).year) == [1987, 1991, 1991]
'''
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r'--year INT +when it was taken', done.stdout) and '2 of them with changed facts' in done.stdout


def test_what_a_program_did_to_a_caption_a_place_or_a_picture_is_said(photos, ws, tmp_path):
    from PIL import Image
    rows = rows_of(photos)
    rows[0]['text'], rows[1]['text'] = 'a cafÃ© with a man', 'a man &amp; a dog'
    with Image.open(photos/rows[2]['file_name']) as im: im = im.convert('RGBA')
    im.putpixel((0, 0), (0, 0, 0, 0))
    im.save(photos/rows[2]['file_name'])
    (photos/rows[3]['file_name']).rename(tmp_path/'elsewhere.png')
    rows[3]['file_name'] = '../elsewhere.png'
    os.mkfifo(photos/'pipe.png')
    write(photos, rows)
    said = str(import_photos(ws, photos, progress=plain))
    assert f'1 caption looks like text that was wrongly decoded ({rows[0]["file_name"]})' in said
    assert f'1 caption looks like text from a web page ({rows[1]["file_name"]})' in said
    assert f'transparent parts of 1 photo became white ({rows[2]["file_name"]})' in said
    assert 'outside the folder: ../elsewhere.png' in said and 'pipe.png (a pipe, socket or device, not a file)' in said
    assert rows[0]['text'] in set(ws.table('prompts').prompt)      # kept as it was written
