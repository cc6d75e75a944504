"""Folders of photographs as people and their programs leave them: read rightly, or refused with file and line.

Each case is a folder that was once read wrongly or in silence. Pictures are drawn, a few pixels wide.
"""
import datetime
import io
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import plain

from hgdpo_curate import UserError, create_workspace, import_photos
from hgdpo_curate.images.captions import read_captions
from hgdpo_curate.images.decode import read_photo


def picture(n, kind='PNG'):
    "A little picture, another for each number."
    from PIL import Image
    out = io.BytesIO()
    noise = np.random.default_rng(n).integers(0, 256, (28, 20, 3), np.uint8)
    Image.fromarray(noise).save(out, kind)
    return out.getvalue()


def folder_of(root, files):
    "Write files: text, bytes, rows for JSON Lines, an int for a picture, None for a folder."
    for name, content in files.items():
        path = root/name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is None: continue
        if isinstance(content, int):
            content = picture(content, 'JPEG' if path.suffix.lower() not in ('.png', '') else 'PNG')
        if isinstance(content, list): content = '\n'.join(json.dumps(r) for r in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def photos(suffix='.png', n=3, text=None): # text: suffix of a caption beside each
    files = {f'{i}{suffix}': i for i in range(n)}
    return files | ({f'{i}{text}': f'person {i}' for i in range(n)} if text else {})


def rows(n=3, name='{}.png', **more):
    return [dict(file_name=name.format(i), text=f'person {i}') | {k: v[i] for k, v in more.items()} for i in range(n)]


BESIDE, PERSONS = photos(text='.txt'), ['person 0', 'person 1', 'person 2']
CSV = 'file_name,text{}\n0.png,person 0{}\n1.png,person 1{}\n2.png,person 2{}\n'


def described(meta, name='metadata.jsonl', suffix='.png'): return photos(suffix) | {name: meta}


READ = {  # case -> files, captions, words of the report
    'apple_double': (BESIDE | {'._0.png': b'resource', '._0.txt': b'\0\5\x16\7'}, PERSONS, '._0.png (a hidden file)'),
    'backslash_paths': (
        {f'anna/{i}.png': i for i in range(3)} | {'metadata.jsonl': rows(name='anna\\{}.png')}, PERSONS, '',
    ),
    'bytes_column': (described(rows(bytes=[1, 2, 3])), PERSONS, 'kept aside: bytes'),
    'caption_and_prompt': (
        described([dict(file_name='0.png', caption='short', prompt='a long prompt')]),
        ['short'],
        'those of caption; prompt is not used',
    ),
    'caption_and_empty_prompt': (
        described([dict(file_name=f'{i}.png', caption=f'person {i}', prompt='x'*(i == 0)) for i in range(3)]),
        PERSONS,
        'those of caption; prompt is not used',
    ),
    'prompt_and_null_caption': (
        described([dict(file_name=f'{i}.png', caption=None, prompt=f'person {i}') for i in range(3)]), PERSONS, '',
    ),
    'captions_in_a_list': (
        described([dict(file_name=f'{i}.png', text=[f'person {i}', 'somebody']) for i in range(3)]),
        PERSONS,
        '3 photos of metadata.jsonl have several captions; the first of each is used',
    ),
    'caption_suffix': (photos(text='.caption'), PERSONS, ''),
    'double_suffix': (photos(text='.png.txt'), PERSONS, ''),
    'upper_txt': (photos(text='.TXT'), PERSONS, ''),
    'case_of_suffix': (described(rows(name='{}.jpg'), suffix='.JPG'), PERSONS, ''),
    'csv_semicolon': (described(CSV.format(*['']*4).replace(',', ';'), 'metadata.csv'), PERSONS, ''),
    'csv_tab': (described(CSV.format(*['']*4).replace(',', '\t').encode('utf-16'), 'metadata.csv'), PERSONS, ''),
    'csv_space_header': (described(CSV.format(*['']*4).replace(',', ', '), 'Metadata.CSV'), PERSONS, ''),
    'csv_of_a_spreadsheet': (
        described('\ufeffsep=;\r\nfile_name;text;;\r\n0.png;"a ""big""; man";;\r\n', 'metadata.csv'),
        ['a "big"; man'],
        '',
    ),
    'dot_slash_paths': (described(rows(name='./{}.png')), PERSONS, ''),
    'folder_named_like_photo': (BESIDE | {'album.jpg': None}, PERSONS, ''),
    'hf_split_folders': (
        {f'{s}/{i}.png': i + 3*(s == 'test') for s in ('test', 'train') for i in range(3)}
        | {f'{s}/metadata.jsonl': rows() for s in ('test', 'train')},
        sorted(PERSONS*2),
        '',
    ),
    'jfif_and_others': (
        {f'{i}{s}': i for i, s in enumerate(('.jpg', '.jfif', '.jpe', '.JPEG', '.JFIF'))}
        | {f'{i}.txt': f'person {i}' for i in range(5)},
        [f'person {i}' for i in range(5)],
        '',
    ),
    'json_array': (described(json.dumps(rows())), PERSONS, ''),
    'json_array_file': (described(json.dumps(rows(), indent=1), 'metadata.json'), PERSONS, ''),
    'jsonl_bom': (described('\ufeff' + '\n'.join(map(json.dumps, rows()))), PERSONS, ''),
    'jsonl_u2028': (
        described('\n'.join(json.dumps(r | dict(text=r['text'].replace(' ', c)), ensure_ascii=False)
                            for r, c in zip(rows(), ' \u2028\x85'))),
        PERSONS,
        '',
    ),
    'jupyter_checkpoint_caption': (
        BESIDE | {'.ipynb_checkpoints/2-checkpoint.png': 2, '.ipynb_checkpoints/2-checkpoint.txt': 'old'},
        PERSONS,
        '.ipynb_checkpoints/',
    ),
    'hidden_and_tool_folders': (
        BESIDE | {f'{d}/0.png': 9 for d in ('.Trash-1000', '.thumbnails', '@eaDir', 'x/@eaDir', '$RECYCLE.BIN')},
        PERSONS,
        '.thumbnails/',
    ),
    'workspace_inside': (
        BESIDE | {'ws/workspace.toml': 'name = "ws"', 'ws/images/real/0.png': 9}, PERSONS, 'a workspace',
    ),
    'kohya_meta_json': (
        described(json.dumps({f'{i}.png': dict(caption=f'person {i}') for i in range(3)}), 'metadata.json'),
        PERSONS,
        '',
    ),
    'kohya_bare_names': (
        described(json.dumps({f'/data/{i}': dict(tags=f'person {i}', train_resolution=[8, 8]) for i in range(3)}),
                  'meta_cap.json'),
        PERSONS,
        'kept aside: train_resolution',
    ),
    'macosx_zip_folder': (
        {f'anna/{n}': v for n, v in BESIDE.items()} | {'__MACOSX/anna/._0.png': b'x', '__MACOSX/anna/._0.txt': b'\xff'},
        PERSONS,
        '__MACOSX/',
    ),
    'masks': (BESIDE | {'0-masklabel.png': 7, '0-masklabel.txt': 'a mask', '1_mask.png': 8}, PERSONS, '(a mask)'),
    'nested_and_top': (
        described(rows()) | {'sub/3.png': 3, 'sub/metadata.jsonl': [dict(file_name='3.png', text='person 3')]},
        [*PERSONS, 'person 3'],
        '',
    ),
    'nfd_names': (
        {unicodedata.normalize('NFD', f'Zoë_{i}.png'): i for i in range(3)}
        | {'metadata.jsonl': rows(name='Zo\u00eb_{}.png')},
        PERSONS,
        '',
    ),
    'not_read': (BESIDE | {'3.CR2': b'raw', '4.mp4': b'film'}, PERSONS, '2 other files are not read: 3.CR2, 4.mp4'),
    'txt_bom': (photos() | {f'{i}.txt': f'\ufeffperson {i}' for i in range(3)}, PERSONS, ''),
    'facts_beside_captions': (
        BESIDE | {'metadata.csv': 'file_name,consent\n0.png,yes\n1.png,no\n2.png,withdrawn\n'},
        PERSONS,
        '',
    ),
    'captions_beside_captions': (
        described(rows()) | {'0.txt': 'other words'},
        PERSONS,
        '1 other file is not read: 0.txt',
    ),
    'txt_utf16': (photos() | {f'{i}.txt': f'person {i}'.encode('utf-16') for i in range(3)}, PERSONS, ''),
}


@pytest.fixture
def ws(tmp_path): return create_workspace(tmp_path/'ws', resolution='40x56')


def imported(ws): # captions by the order of their photos
    prompts = ws.table('prompts').set_index('real_image_id').prompt
    return prompts[ws.table('photo_facts').sort_values('original_path').image_id].tolist()


def captions_of(folder, table): # sorted; every photo is really there and no other is meant
    for r in table.to_dict('records'): read_photo(folder/r['file_name'])
    return sorted(' '.join(text.split()) for text in table.text)


@pytest.mark.parametrize('case', READ)
def test_a_folder_is_read_as_its_owner_means_it(case, tmp_path):
    files, captions, words = READ[case]
    folder = folder_of(tmp_path/case, files)
    table = read_captions(folder)
    assert captions_of(folder, table) == sorted(captions) and words in '; '.join(table.attrs['notes'])
    assert set(table.attrs['unnamed']) == ({'1.png', '2.png'} if len(captions) == 1 else set())


def test_the_report_of_an_import_says_what_was_passed_over(ws, tmp_path):
    report = import_photos(ws, folder_of(tmp_path/'photos', READ['masks'][0]), progress=plain)
    assert imported(ws) == PERSONS and 'skipped: 0-masklabel.png, 1_mask.png (a mask)' in str(report).lower()


REFUSED = {  # case -> files, words of the sentence, captions that stay with skip_bad (None: refused too)
    'csv_cp1252': (
        described('file_name,text\n0.png,à la plage\n'.encode('cp1252'), 'metadata.csv'),
        'metadata.csv, line 2 is not UTF-8',
        None,
    ),
    'csv_quotes_in_caption': (
        described('file_name,text\n0.png,"a man, "thumbs up", smiling"\n', 'metadata.csv'),
        'metadata.csv, line 2',
        None,
    ),
    'csv_unquoted_commas': (
        described('file_name,text\n0.png,person 0, smiling\n', 'metadata.csv'),
        'line 2 has 3 fields, the header 2',
        None,
    ),
    'two_metadata': (
        described(rows()) | {'metadata.csv': CSV.format(',consent', *[',withdrawn'] * 3)},
        'metadata.csv and by metadata.jsonl',
        None,
    ),
    'unread_metadata': (described(rows()) | {'metadata.xlsx': b'PK'}, 'metadata.xlsx is not read', None),
    'consent_file': (BESIDE | {'withdrawn.csv': '0.png\n'}, 'withdrawn.csv is not read', None),
    'json_names_twice': (
        described('{"file_name": "0.png", "text": "a", "consent": "no", "consent": "yes"}'),
        "line 1 is not JSON (it names 'consent' twice)",
        None,
    ),
    'two_licences': (
        described([dict(r, license='CC0', licence='MIT' * (r['text'] == 'person 2')) for r in rows()]),
        "line 3 states licence as 'CC0' and as 'MIT'",
        PERSONS[:2],
    ),
    'facts_and_a_caption_that_is_missing': (
        {k: v for k, v in BESIDE.items() if k != '1.txt'}
        | {'metadata.csv': 'file_name,licence\n0.png,CC0\n1.png,CC0\n2.png,CC0\n'},
        '1.png has no caption; write one into 1.txt',
        [PERSONS[0], PERSONS[2]],
    ),
    'json_as_caption': (BESIDE | {'0.txt': '{"caption": "a", "consent": "no"}'}, '0.txt is JSON', PERSONS[1:]),
    'rtf_as_caption': (BESIDE | {'0.txt': r'{\rtf1\ansi a man}'}, '0.txt is RTF', PERSONS[1:]),
    'consent_in_a_caption': (BESIDE | {'0.txt': 'a man\nconsent: no'}, "0.txt says 'consent: no'", PERSONS[1:]),
    'consent_in_a_table_that_is_not_read': (
        BESIDE | {'people.csv': CSV.format(',Consent', *[',no']*3)}, "people.csv is not read, and has 'Consent'", None,
    ),
    'consent_in_a_sidecar': (BESIDE | {'0.json': '{"rights": {"consent": "no"}}'}, "0.json is not read, and has", None),
    'a_folder_of_withdrawn': (
        BESIDE | {'withdrawn/3.png': 3, 'withdrawn/3.txt': 'a man'},
        "a folder 'withdrawn'",
        None,
    ),
    'consent_inside_another_column': (
        described([rows()[0] | dict(rights=dict(consent='no'))]),
        'among its rights',
        None,
    ),
    'an_age_below_18': (described([r | dict(age=a) for r, a in zip(rows(), (34, 12, 51))]), 'age 12', None),
    'an_empty_row_and_another_of_the_same_photo': (
        described('file_name,text,consent\n0.png,,withdrawn\n0.png,a man,yes\n', 'metadata.csv'),
        '0.png has no caption', None,
    ),
    'cp1252_txt': (BESIDE | {'0.txt': 'a person’s hat'.encode('cp1252')}, '0.txt, line 1 is not UTF-8', PERSONS[1:]),
    'lone_surrogate': (
        described([r | dict(text=r['text'] + '\ud83d' * (i == 1)) for i, r in enumerate(rows())]),
        'metadata.jsonl, line 2 contains half of a character',
        [PERSONS[0], PERSONS[2]],
    ),
    'empty_caption': (
        described([r | dict(text=r['text'] * (i > 0)) for i, r in enumerate(rows())]),
        '0.png has no caption',
        PERSONS[1:],
    ),
    'empty_txt': (BESIDE | {'2.txt': ' \n'}, '2.png has no caption', PERSONS[:2]),
    'null_caption': (
        described([r | dict(text=None if i == 1 else r['text']) for i, r in enumerate(rows())]),
        '1.png has no caption',
        [PERSONS[0], PERSONS[2]],
    ),
    'number_as_caption': (
        described([r | dict(text=7 if i == 1 else r['text']) for i, r in enumerate(rows())]),
        '1.png has no caption in words, but 7',
        [PERSONS[0], PERSONS[2]],
    ),
    'two_captions_beside': (
        BESIDE | {'0.caption': 'somebody else'},
        'different captions in 0.txt and 0.caption',
        PERSONS[1:],
    ),
    'mask_in_metadata': (
        described([*rows(), dict(file_name='0-masklabel.png', text='a')]) | {'0-masklabel.png': 9},
        'line 4 names 0-masklabel.png, which is not a photograph (a mask)',
        PERSONS,
    ),
    'name_of_two': (
        {
            'A.png': 0,
            'a.PNG': 1,
            '2.png': 2,
            'metadata.jsonl': [dict(file_name='a.png', text='person 0'), dict(file_name='2.png', text='person 2')],
        },
        'A.png or a.PNG',
        PERSONS[2:],
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_read_is_refused_or_left_out_and_listed(case, tmp_path):
    files, words, left = REFUSED[case]
    folder = folder_of(tmp_path/case, files)
    with pytest.raises(UserError) as error: read_captions(folder)
    assert words in str(error.value) and '\n' not in str(error.value)
    if left is None:
        with pytest.raises(UserError): read_captions(folder, skip_bad=True)
        return
    table = read_captions(folder, skip_bad=True)
    assert captions_of(folder, table) == left and not set(table.attrs['unnamed']) - {'a.PNG', 'A.png'}
    (_, reason), = table.attrs['left_out']
    assert words in reason


def test_an_import_lists_what_skip_bad_left_out(ws, tmp_path):
    folder = folder_of(tmp_path/'photos', REFUSED['empty_txt'][0])
    with pytest.raises(UserError, match='2.png has no caption'): import_photos(ws, folder, progress=plain)
    assert not len(ws.table('images'))
    report = import_photos(ws, folder, skip_bad=True, progress=plain)
    assert imported(ws) == PERSONS[:2] and '1 refused' in str(report) and '2.png has no caption' in report.refused[0]


@pytest.mark.parametrize('header, value, stated', [
    ('Consent', 'withdrawn', dict(consent='withdrawn')), ('consent ', 'no', dict(consent='no')),
    ('CONSENTS', 'No', dict(consent='no')), ('Minors', 'yes', dict(minors='yes')), ('minors', True, dict(minors='yes')),
    ('Licence', 'CC0', dict(licence='CC0')), ('License', 'CC0', dict(licence='CC0')),
    ('licenses', 'CC0', dict(licence='CC0')), ('Model Release', 'no', dict(release='no')),
    ('release_signed', 'no', dict(release='no')), ('Consent?', 'no', dict(consent='no')),
    ('takedown contact', 'me', dict(takedown_contact='me'))])
def test_a_fact_is_known_however_its_column_is_written(header, value, stated, ws, tmp_path):
    import_photos(ws, folder_of(tmp_path/'photos', described(rows(**{header: [value]*3}))), progress=plain)
    facts = ws.table('photo_facts')
    assert all(set(facts[k]) == {v} for k, v in stated.items())


def test_photos_withdrawn_under_a_capital_letter_reach_no_split(ws, tmp_path):
    from hgdpo_curate.workspace import excluded_photos
    table = CSV.format(',Consent,Minors', *[',withdrawn,yes']*3).replace('\n', '\r\n')
    import_photos(ws, folder_of(tmp_path/'photos', described(table, 'metadata.csv')), progress=plain)
    assert len(excluded_photos(ws)) == 3


@pytest.mark.parametrize('header', [
    'minor', 'Minor', 'child', 'Children', 'withdrawn', 'opt_out', 'opt-out', 'optout', 'OptOut', 'consent_given',
    'concent'])
def test_a_column_that_may_mean_consent_stops_the_import_with_a_question(header, tmp_path):
    folder = folder_of(tmp_path/'photos', described(rows(**{header: ['yes']*3})))
    for skip in (False, True):
        with pytest.raises(UserError, match=f"metadata.jsonl has a column '{header}'.*\\?.*consent.*minors"):
            read_captions(folder, skip)
    folder_of(folder, described(rows(attributes=[{header: 'yes'}]*3)))
    with pytest.raises(UserError, match=f"'{header}' among its attributes"): read_captions(folder)


def test_other_columns_are_kept_aside_and_said(ws, tmp_path):
    folder = folder_of(tmp_path/'photos', described(rows(width=[8, 8, 8], content=['x', 'y', 'z'])))
    report = import_photos(ws, folder, progress=plain)
    assert 'columns of metadata.jsonl kept aside: width, content' in str(report).lower()


def test_folders_that_are_links_are_entered_once_and_loops_are_passed_over(ws, tmp_path):
    folder = folder_of(tmp_path/'photos', photos(n=2, text='.txt'))
    more = folder_of(tmp_path/'elsewhere', {'2.png': 2, '2.txt': 'person 2'})
    (folder/'more').symlink_to(more)
    (folder/'again').symlink_to(more)
    (folder/'loop').symlink_to(folder)
    (more/'back').symlink_to(folder)
    report = import_photos(ws, folder, progress=plain)
    assert sorted(imported(ws)) == PERSONS and not report.exact_duplicates and 'loop' in str(report)


def test_a_name_that_is_not_utf_8_is_refused_by_name(ws, tmp_path):
    folder = folder_of(tmp_path/'photos', photos(n=1, text='.txt'))
    name = os.fsencode(folder) + b'/' + '照片'.encode('gbk')
    for suffix, content in ((b'.png', picture(1)), (b'.txt', b'person 1')):
        Path(os.fsdecode(name + suffix)).write_bytes(content)
    with pytest.raises(UserError, match=r'\\xd5\\xd5.*png is not UTF-8; rename'): read_captions(folder)
    report = import_photos(ws, folder, skip_bad=True, progress=plain)
    assert imported(ws) == ['person 0'] and r'\xd5\xd5' in report.refused[0]


def test_a_folder_whose_name_is_not_utf_8_is_refused_by_name(tmp_path):
    folder = folder_of(tmp_path/'photos', photos(n=1, text='.txt'))
    inner = folder_of(Path(os.fsdecode(os.fsencode(folder) + b'/' + '照片'.encode('gbk'))), described(rows()))
    for bad in (folder, inner):
        with pytest.raises(UserError, match=r'\\xd5\\xd5.* is not UTF-8; rename'): read_captions(bad)
    table = read_captions(folder, skip_bad=True)
    assert table.text.tolist() == ['person 0'] and len(table.attrs['left_out']) == 3


def dataset(folder, columns): # as `datasets.save_to_disk` writes it
    import pyarrow as pa
    (folder/'train').mkdir(parents=True)
    table = pa.table(columns)
    with pa.OSFile(str(folder/'train'/'data-0.arrow'), 'wb') as f, pa.ipc.new_stream(f, table.schema) as out:
        out.write_table(table)
    (folder/'dataset_dict.json').write_text('{"splits": ["train"]}')
    (folder/'train'/'state.json').write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
    return folder


def inside(*numbers): return [dict(bytes=None if n is None else picture(n), path=None) for n in numbers]


def test_of_two_image_columns_image_counts(ws, tmp_path):
    from hgdpo_curate.images.decode import pixel_hash
    folder = dataset(tmp_path/'photos', dict(conditioning_image=inside(7, 8), image=inside(0, 1), text=PERSONS[:2]))
    report = import_photos(ws, folder, progress=plain)
    expected = {pixel_hash(read_photo('x.png', picture(n))[0]) for n in (0, 1)}
    assert set(ws.table('photo_facts').image_id) == expected and 'kept aside: conditioning_image' in str(report)
    other = dataset(tmp_path/'other', dict(depth=inside(7, 8), photo=inside(0, 1), text=PERSONS[:2]))
    with pytest.raises(UserError, match='picture columns depth, photo; rename'): read_captions(other)


def test_a_row_without_a_picture_is_named_or_left_out(ws, tmp_path):
    folder = dataset(tmp_path/'photos', dict(image=inside(0, 1, None), text=PERSONS))
    with pytest.raises(UserError, match='row 2 of .* contains no picture'): import_photos(ws, folder, progress=plain)
    report = import_photos(ws, folder, skip_bad=True, progress=plain)
    assert imported(ws) == PERSONS[:2] and 'row 2' in report.refused[0]


def test_the_hubs_own_parquet_is_read(ws, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    folder = tmp_path/'photos'
    (folder/'data').mkdir(parents=True)
    for n in range(2):
        table = pa.table(dict(image=inside(n), text=[f'person {n}'], consent=['no']))
        pq.write_table(table, folder/'data'/f'train-0000{n}-of-00002.parquet')
    import_photos(ws, folder, progress=plain)
    assert imported(ws) == PERSONS[:2] and set(ws.table('photo_facts').consent) == {'no'}
    assert ws.table('photo_facts').original_path.nunique() == 2


def test_times_in_parquet_are_kept_as_text(ws, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    taken = [dict(taken=datetime.datetime(2024, 5, 1), n=i) for i in range(3)]
    folder = folder_of(tmp_path/'photos', photos())
    pq.write_table(pa.Table.from_pylist(rows(attributes=taken)), folder/'metadata.parquet')
    import_photos(ws, folder, progress=plain)
    attributes = sorted(ws.table('photo_facts').attributes, key=lambda a: a['n'])
    assert attributes == [dict(taken='2024-05-01T00:00:00', n=i) for i in range(3)]


def test_two_photos_of_one_caption_file_are_named(tmp_path):
    folder = folder_of(tmp_path/'photos', {'0.png': 0, '0.jpg': 1, '0.txt': 'somebody'})
    assert read_captions(folder).attrs['shared_captions'] == [['0.jpg', '0.png']]


def test_a_workspace_is_no_folder_of_photos(ws):
    with pytest.raises(UserError, match='is a workspace'): read_captions(ws.root)


@pytest.mark.parametrize('name', ['street', 'scenes'])
def test_the_metadata_of_real_photographs_is_read_as_it_stands(test_data, name):
    folder = test_data/'photos'/name
    lines = [json.loads(x) for x in (folder/'metadata.jsonl').read_text().split('\n') if x]
    table = read_captions(folder)
    for column in ('file_name', 'text'): assert table[column].tolist() == [r[column] for r in lines]
    for column, stated in (('box', 'person_box'), ('tags', 'tags'), ('licence', 'licence'), ('source', 'source')):
        if any(stated in r for r in lines): assert table[column].tolist() == [r[stated] for r in lines]
