"""Photographs that importers trip over, and real ones."""
import csv
import io
import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from conftest import plain

# what becomes of a file whose case says so; every other file is read
REFUSED = {
    'pillow/hopper_unknown_pixel_mode.tif',
    'pillow/truncated_end_chunk.png',
    'pillow/truncated_image.png',
    'pillow/truncated_jpeg.jpg',
} | ({'pillow/hopper.heif'} if not any(map(importlib.util.find_spec, ('pi_heif', 'pillow_heif'))) else set())


def test_every_awkward_file_is_read_upright_or_refused_by_name(test_data):
    from hgdpo_curate import UserError
    from hgdpo_curate.images.decode import read_photo
    folder, upright = test_data/'photos'/'awkward', None
    refused = set()
    for row in csv.DictReader(open(folder/'manifest.tsv'), delimiter='\t'):
        try: im, _ = read_photo(folder/row['file'])
        except UserError as e:
            assert row['file'].split('/')[-1] in str(e)
            refused.add(row['file'])
        else: assert im.mode == 'RGB' and min(im.size) > 0
    assert refused == REFUSED
    upright = np.asarray(read_photo(folder/'pillow/hopper.jpg')[0].resize((32, 32))).astype(float)
    for n in (2, 3, 4, 5, 6, 7, 8):
        turned = np.asarray(read_photo(folder/f'pillow/hopper_orientation_{n}.jpg')[0].resize((32, 32))).astype(float)
        assert np.abs(turned - upright).mean() < 12, n


@pytest.mark.parametrize('test_share, photos', [(.05, 40), (.25, 40)])
def test_near_duplicates_and_equal_captions_share_a_fold(tmp_path, test_share, photos):
    import json
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    folder = export_photos(tmp_path/'photos', photos, seed=4)
    rows = [json.loads(x) for x in (folder/'metadata.jsonl').read_text().splitlines()]
    for r in rows[:6]: r['text'] = 'the same words'
    # a twin of every tenth photo, one pixel apart
    from PIL import Image
    for r in rows[10::10]:
        im = Image.open(folder/r['file_name'])
        im.putpixel((0, 0), (9, 9, 9))
        im.save(folder/f'twin-{r["file_name"]}')
    rows += [r | dict(file_name=f'twin-{r["file_name"]}', text=f'{r["text"]} again') for r in rows[10::10]]
    (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    ws = create_workspace(tmp_path/'ws', resolution='40x56', test_share=test_share)
    import_photos(ws, folder, progress=plain)
    pr = ws.table('prompts')
    assert pr.query("prompt == 'the same words'").fold.nunique() == 1
    assert 0 < (pr.fold == 'test').sum() <= max(1, round(test_share*len(pr)))
    fold = pr.set_index('real_image_id').fold
    assert len(ws.table('duplicates')) >= 3
    for d in ws.table('duplicates').itertuples(): assert fold[d.image_id] == fold[d.other_id]


def test_consent_is_read_strictly_and_may_be_withdrawn_later(tmp_path):
    import json
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    from hgdpo_curate.workspace import excluded_photos
    folder = export_photos(tmp_path/'photos', 6, seed=4)
    rows = [json.loads(x) for x in (folder/'metadata.jsonl').read_text().splitlines()]
    def write(): (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    rows[0]['consent'], rows[1]['minors'], rows[2]['minors'] = False, True, ' Yes '
    write()
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    import_photos(ws, folder, progress=plain)
    assert len(excluded_photos(ws)) == 3
    # the same photo twice: the stricter word counts
    (folder/'copy.png').write_bytes((folder/'00004.png').read_bytes())
    rows[3]['consent'] = 'withdrawn'
    rows.append(rows[4] | dict(file_name='copy.png', consent='no'))
    write()
    report = import_photos(ws, folder, progress=plain)
    assert (report.imported, report.restated, len(report.exact_duplicates)) == (0, 2, 1)
    assert len(excluded_photos(ws)) == 5


def test_exact_duplicates_are_kept_by_name_once_each_whatever_import_they_came_with(tmp_path, monkeypatch):
    import shutil
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    from hgdpo_curate.images.duplicates import offered_files
    folder = export_photos(tmp_path/'photos', 3, seed=4)
    lines = (folder/'metadata.jsonl').read_text().splitlines()
    shutil.copy(folder/'00001.png', folder/'twin.png')
    (folder/'metadata.jsonl').write_text('\n'.join([*lines, lines[1].replace('00001', 'twin')]))
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    report = import_photos(ws, folder, progress=plain)
    def copies():
        return [
            sorted(p.removeprefix(f'{tmp_path}/') for p in c)
            for c in ws.table('photo_facts').sort_values('original_path').copies
        ]
    assert copies() == [[], ['photos/twin.png'], []] and report.imported == 3 and report.restated == 0
    other = shutil.copytree(folder, tmp_path/'elsewhere')
    import_photos(ws, other, progress=plain)
    every = [
        ['elsewhere/00000.png'],
        ['elsewhere/00001.png', 'elsewhere/twin.png', 'photos/twin.png'],
        ['elsewhere/00002.png'],
    ]
    assert copies() == every
    written = len(ws.table('photo_facts', history=True))
    monkeypatch.chdir(tmp_path)
    # the same places, spelt in two ways
    for again in (folder, other, 'photos', 'elsewhere'): import_photos(ws, again, progress=plain)
    assert copies() == every and len(ws.table('photo_facts', history=True)) == written
    assert len(offered_files(ws.table('photo_facts'))) == 3 + 5 and len(ws.table('images')) == 3


def test_every_file_of_the_manifest_has_its_expected_outcome(test_data, tmp_path):
    """Copies in another size or format are proposed as duplicates, gray and CMYK become RGB, refused ones are listed.

    Nothing is left out in silence.
    """
    import json
    from hgdpo_curate import create_workspace, import_photos
    folder = test_data/'photos'/'awkward'
    cases = {r['file']: r['case'] for r in csv.DictReader(open(folder/'manifest.tsv'), delimiter='\t')}
    copy = tmp_path/'awkward'
    import shutil
    shutil.copytree(folder, copy)
    (copy/'metadata.jsonl').write_text('\n'.join(json.dumps(dict(file_name=f, text=f)) for f in cases))
    ws = create_workspace(tmp_path/'ws', resolution='64x80')
    report = import_photos(ws, copy, skip_bad=True, progress=plain)
    name = {i: f for i, f in zip(ws.table('prompts').real_image_id, ws.table('prompts').prompt)}
    assert len(report.refused) == len(REFUSED) and report.imported + len(report.exact_duplicates) + len(
        report.refused
    ) == len(cases)
    alike = {
        frozenset((name[a], name[b])) for a, b in zip(ws.table('duplicates').image_id, ws.table('duplicates').other_id)
    }
    exact = {f: g for f, g in report.exact_duplicates}
    for f, case in cases.items():
        if f in REFUSED: assert any(f.split('/')[-1] in r for r in report.refused), f
        elif 'downscaled duplicate of 200x250' in case:
            assert frozenset((f, f.replace('100x125', '200x250'))) in alike, f
        elif case.startswith(('same photo', 'downscaled duplicate')):
            assert f in exact or any(f in pair and 'hopper' in str(pair) for pair in alike), f
    # no stranger is taken for another
    assert not [p for p in alike if {f.split('/')[0] for f in p} == {'congress', 'pillow'}]
    assert report.unstated == dict(licence=report.imported, consent=report.imported, minors=report.imported)
    sizes = ws.table('photo_facts').set_index('image_id')
    assert (sizes.photo_width[[i for i, f in name.items() if f.startswith('congress/200x250')]] == 200).all()


def test_embeddings_find_near_duplicates_where_a_model_is_given(tmp_path):
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    photos = export_photos(tmp_path/'photos', 6, seed=4)
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    looked = []
    def embed(images):
        looked.extend(images)
        return np.stack(
            [
                [1.0, 0.0] if n in (0, 3) else [0.0, float(n + 1)] if n % 2 else [float(n + 1), float(-n - 1)]
                for n in range(len(images))
            ]
        )
    report = import_photos(ws, photos, embed=embed, progress=plain)
    assert len(looked) == 6 and report.near_duplicates == len(ws.table('duplicates')) > 0


def test_the_three_known_pairs_of_street_are_found(test_data, tmp_path):
    "On the photographs concerned and a hundred others; of these none is taken for another."
    import json
    from hgdpo_curate import create_workspace, import_photos
    street = test_data/'photos'/'street'
    rows = [json.loads(x) for x in (street/'metadata.jsonl').read_text().splitlines()]
    known = {
        frozenset((f'{a}.jpg', f'{b}.jpg'))
        for a, b, _ in csv.reader(open(street.parent / 'street' / 'duplicates.tsv'), delimiter='\t')
        if a != 'a'
    }
    pick = [r for n, r in enumerate(rows) if n % 10 == 0 or any(r['file_name'] in k for k in known)]
    (tmp_path/'photos').mkdir()
    for r in pick: (tmp_path/'photos'/r['file_name']).symlink_to(street/r['file_name'])
    (tmp_path / 'photos' / 'metadata.jsonl').write_text(
        '\n'.join(json.dumps(r | dict(text=f'{r["file_name"]} {r["text"]}')) for r in pick)
    )
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    import_photos(ws, tmp_path/'photos', progress=plain)
    name = {i: p.split(' ')[0] for i, p in zip(ws.table('prompts').real_image_id, ws.table('prompts').prompt)}
    found = {
        frozenset((name[a], name[b])) for a, b in zip(ws.table('duplicates').image_id, ws.table('duplicates').other_id)
    }
    assert known <= found and len(found) <= len(known) + 1, found - known


def test_different_people_before_one_wall_are_not_taken_for_one(test_data, tmp_path):
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.images.duplicates import _distances, _packed, HASH_LIMIT, perceptual_hashes
    studio = test_data/'cases'/'studio'
    hashes = _packed(perceptual_hashes([Image.open(f) for f in studio.glob('*.jpg')]))
    bits = _distances(hashes, hashes)
    assert (np.triu(bits <= HASH_LIMIT, 1)).sum() > 10                             # by the hash alone
    ws = create_workspace(tmp_path/'ws', resolution='400x560')
    report = import_photos(ws, studio, progress=plain)
    assert report.imported == 20 and not report.near_duplicates and not len(ws.table('duplicates'))
    # proposals of an earlier version are taken back by the next import
    photos = ws.table('images').image_id
    ws.append('duplicates', [dict(image_id=photos[0], other_id=photos[1], kind='near', distance=6.0)])
    import_photos(ws, studio, progress=plain)
    assert not len(ws.table('duplicates'))


ALTERED = dict(
    recompressed=lambda im: _jpeg(im, 15),
    smaller=lambda im: im.resize((im.width//5, im.height//5)),
    cropped=lambda im: im.crop((im.width//66, im.height//66, im.width - im.width//66, im.height - im.height//66)),
    brighter=lambda im: ImageEnhance.Brightness(im).enhance(1.25),
    darker=lambda im: ImageEnhance.Brightness(im).enhance(.7),
    warmer=lambda im: Image.merge('RGB', [c.point(lambda v: v*k) for c, k in zip(im.split(), (1.12, 1, .85))]),
    gray=lambda im: im.convert('L'),
)


def _jpeg(im, quality):
    file = io.BytesIO()
    im.save(file, 'JPEG', quality=quality)
    return Image.open(file)


def test_the_second_look_loses_no_copy_of_a_photograph(test_data):
    from hgdpo_curate.images.duplicates import (
        _distances, _packed, fine_distances, HASH_LIMIT, perceptual_hashes, thumbnails,
    )
    files = sorted((test_data/'photos'/'street').glob('*.jpg'))[::40]
    photos = [Image.open(f).convert('RGB').resize((192, 288)) for f in files]
    hashes, small = _packed(perceptual_hashes(photos)), thumbnails(photos)
    for name, alter in ALTERED.items():
        altered = [alter(im) for im in photos]
        by_hash = _distances(hashes, _packed(perceptual_hashes(altered))).diagonal() <= HASH_LIMIT
        assert by_hash.all() and (fine_distances(small, thumbnails(altered)) <= HASH_LIMIT).all(), name
    assert (fine_distances(small[:-1], small[1:]) > HASH_LIMIT).mean() > .9


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path):
    from PIL import Image
    from hgdpo_curate import UserError
    from hgdpo_curate.images.decode import read_photo
    Image.new('1', (12_000, 12_000)).save(tmp_path/'bomb.png')                 # 18 kB on disk
    with pytest.raises(UserError, match='bomb.png.*more than 120,000,000 pixels'): read_photo(tmp_path/'bomb.png')


def test_heif_is_read_where_a_reader_is_installed_and_else_says_which(test_data, monkeypatch):
    import sys
    import types
    from hgdpo_curate import UserError
    from hgdpo_curate.images.decode import read_photo
    opened = []
    # a stand-in: only that it is asked
    monkeypatch.setitem(sys.modules, 'pi_heif', types.SimpleNamespace(register_heif_opener=lambda: opened.append(1)))
    file = test_data/'photos'/'awkward'/'pillow'/'hopper.heif'
    with pytest.raises(UserError, match='pi-heif'): read_photo(file)
    assert opened


def test_a_withdrawal_is_not_undone_by_a_copy_elsewhere(tmp_path):
    import json
    import shutil
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    here = export_photos(tmp_path/'here', 2, seed=4)
    def state(folder, consent):
        (folder / 'metadata.jsonl').write_text(
            '\n'.join(
                json.dumps(json.loads(x) | dict(consent=consent))
                for x in (folder / 'metadata.jsonl').read_text().splitlines()
            )
        )
    state(here, 'withdrawn')
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    import_photos(ws, here, progress=plain)
    there = shutil.copytree(here, tmp_path/'there')
    state(there, 'yes')
    import_photos(ws, there, progress=plain)
    assert set(ws.table('photo_facts').consent) == {'withdrawn'}
    state(here, 'yes')                                                          # corrected where it was said
    import_photos(ws, here, progress=plain)
    assert set(ws.table('photo_facts').consent) == {'yes'}


def test_a_gps_position_is_reported_and_not_in_the_copy(tmp_path, capsys):
    "In the EXIF block and in XMP; the photo itself is not touched."
    import json
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import draw_person
    from PIL import Image
    folder = tmp_path/'photos'
    folder.mkdir()
    exif = Image.Exif()
    exif.get_ifd(0x8825).update(
        {
            1: 'N',
            2: (52.0, 31.0, 12.0),
            3: 'E',
            4: (13.0, 24.0, 36.0),
        }
    )
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description exif:GPSLatitude="52,31.2N"/></x:xmpmeta>'
    for n, more in enumerate((dict(exif=exif), dict(xmp=xmp), {})):
        draw_person(n).pil().resize((80, 112)).save(folder/f'{n}.jpg', **more)
    (folder / 'metadata.jsonl').write_text(
        '\n'.join(json.dumps(dict(file_name=f'{n}.jpg', text=f'person {n}')) for n in range(3))
    )
    ws = create_workspace(tmp_path/'ws', resolution='80x112')
    report = import_photos(ws, folder, progress=plain)
    assert report.with_position == 2 and 'GPS position' in str(report)
    assert ws.table('photo_facts').merge(ws.table('images')[['image_id', 'prompt_id']]).merge(
        ws.table('prompts')[['prompt_id', 'prompt']]
    ).sort_values('prompt').exif_gps.tolist() == ['present', 'present', '']
    for path in ws.table('images').path:
        copy = (ws.root/path).read_bytes()
        with Image.open(ws.root/path) as im:
            assert not dict(im.getexif()) and not {'exif', 'xmp', 'XML:com.adobe.xmp'} & set(im.info)
        assert b'GPS' not in copy and b'eXIf' not in copy


def test_odd_pictures_are_named(tmp_path):
    from hgdpo_curate import UserError, create_workspace, import_photos
    def noise(n, size=(48, 64)):
        return Image.fromarray(np.random.default_rng(n).integers(0, 256, (8, 6, 3), np.uint8)).resize(size)
    folder = tmp_path/'photos'
    folder.mkdir()
    def names(): return [f.name for f in folder.glob('*.*') if f.suffix != '.txt']
    def read(**more):
        for name in names(): (folder/f'{name}.txt').write_text(f'the picture {name}')
        return import_photos(create_workspace(tmp_path/f'ws{len(names())}{len(more)}', resolution='40x56'), folder,
                             progress=plain, **more)
    for n, name in enumerate(('moving.gif', 'moving.webp', 'pages.tif', 'moving.png')):
        noise(10 + n).save(folder/name, save_all=True, append_images=[noise(20)])
    noise(3, (1, 1)).save(folder/'dot.png')
    noise(4, (3000, 2)).save(folder/'line.png')                                    # its contact sheet is a line
    noise(5).convert('CMYK').save(folder/'print.jpg')
    noise(6).save(folder/'phone.jpg', 'MPO', save_all=True, append_images=[noise(7)])
    words = str(read())
    assert '4 files hold several pictures, of which the first is taken (moving.gif' in words
    assert 'phone.jpg' not in words
    assert '2 photos are smaller than the training images and enlarged' in words and 'dot.png, 1x1, 56.0 times' in words
    (folder/'empty.jpg').touch()
    with pytest.raises(UserError, match='empty.jpg cannot be read as an image .the file is empty'): read()
    (folder/'empty.jpg').write_bytes(b'\0\0\0\x18ftypheic' + b'\0'*99)
    with pytest.raises(UserError, match='its content is HEIF.; install pi-heif'): read(skip_bad=False)


def test_two_versions_of_a_photo_with_other_consent_are_named(test_data, tmp_path):
    from hgdpo_curate import create_workspace, import_photos
    folder = tmp_path/'photos'
    folder.mkdir()
    for n, name in enumerate(('0001', '0050')):
        im = Image.open(test_data/'photos'/'street'/f'{name}.jpg')
        im.save(folder/f'{n}.jpg')
        im.resize((im.width//2, im.height//2)).save(folder/f'{n}-small.jpg')
    said = dict(zip(('0.jpg', '0-small.jpg', '1.jpg', '1-small.jpg'), ('yes', 'withdrawn', 'yes', 'unknown')))
    lines = ['file_name,text,consent', *(f'{file},{file} a person,{consent}' for file, consent in said.items())]
    (folder/'metadata.csv').write_text('\n'.join(lines))
    report = import_photos(create_workspace(tmp_path/'ws', resolution='64x96'), folder, progress=plain)
    assert report.near_duplicates == 2 and len(report.differ) == 1
    words = str(report).split('something else is stated of their people: ')[1]
    assert '0.jpg' in words and '0-small.jpg' in words and 'withdrawn' in words and '1-small' not in words


# --- near duplicates in blocks

@pytest.mark.parametrize('hashes', [True, False])
def test_blocks_find_the_pairs_of_the_whole_table_of_distances(hashes, monkeypatch):
    from hgdpo_curate.images import duplicates
    rng = np.random.default_rng(0)
    vectors = (rng.integers(0, 2, (300, 64)) if hashes else rng.normal(size=(300, 12))).astype('float32')
    vectors[100:130] = vectors[:30]
    vectors[130:160, :4] = 1
    v = vectors/np.linalg.norm(vectors, axis=1, keepdims=True)
    every = (vectors[:, None] != vectors).sum(-1) if hashes else 1 - v @ v.T
    limit = 20 if hashes else .3
    a, b = np.nonzero(np.triu(every <= limit, 1))
    for block in (1, 37, 2048):
        monkeypatch.setattr(duplicates, 'BLOCK', block)
        first, second, apart = duplicates.close_pairs(vectors, limit, hashes)
        assert [*zip(first, second)] == [*zip(a, b)] and len(a) > 30
        np.testing.assert_allclose(apart, every[a, b], atol=1e-5)
    assert [len(x) for x in duplicates.close_pairs(vectors[:1], limit, hashes)] == [0, 0, 0]
