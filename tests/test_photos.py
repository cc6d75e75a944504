"""Photographs that importers trip over, and real ones."""
import csv

import numpy as np
import pytest
from conftest import plain

REFUSED = {'pillow/hopper_unknown_pixel_mode.tif', 'pillow/truncated_end_chunk.png', 'pillow/truncated_image.png', 'pillow/truncated_jpeg.jpg', 'pillow/hopper.heif'}


def test_every_awkward_file_is_read_upright_or_refused_by_name(test_data):
    from hgdpo_curate import UserError
    from hgdpo_curate.images.photos import read_photo
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


def test_people_are_fitted_whole(test_data):
    import json
    from hgdpo_curate.images.photos import fit_window
    from PIL import Image
    for line in (test_data/'photos'/'street'/'metadata.jsonl').read_text().splitlines()[:300]:
        r = json.loads(line)
        with Image.open(test_data/'photos'/'street'/r['file_name']) as im: size = im.size
        for want in ((40, 56), (64, 64), (96, 64)):
            x0, y0, x1, y1 = fit_window(*size, want, r['person_box'])
            l, t, right, b = r['person_box']
            assert x0 <= l + .5 and y0 <= t + .5 and x1 >= right - .5 and y1 >= b - .5, r['file_name']
            assert abs((x1 - x0)/(y1 - y0) - want[0]/want[1]) < 1e-6


@pytest.mark.parametrize('test_share, photos', [(.05, 40), (.25, 40)])
def test_near_duplicates_and_equal_captions_share_a_fold(tmp_path, test_share, photos):
    import json
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.images.mannequins import export_photos
    folder = export_photos(tmp_path/'photos', photos, seed=4)
    rows = [json.loads(x) for x in (folder/'metadata.jsonl').read_text().splitlines()]
    for r in rows[:6]: r['text'] = 'the same words'
    from PIL import Image                                                     # a twin of every tenth photo, one pixel apart
    for r in rows[10::10]:
        im = Image.open(folder/r['file_name']); im.putpixel((0, 0), (9, 9, 9)); im.save(folder/f'twin-{r["file_name"]}')
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
    from hgdpo_curate.images.mannequins import export_photos
    from hgdpo_curate.images.photos import barred_photos
    folder = export_photos(tmp_path/'photos', 6, seed=4)
    rows = [json.loads(x) for x in (folder/'metadata.jsonl').read_text().splitlines()]
    def write(): (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    rows[0]['consent'], rows[1]['minors'], rows[2]['minors'] = False, True, ' Yes '
    write()
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    import_photos(ws, folder, progress=plain)
    assert len(barred_photos(ws)) == 3
    (folder/'copy.png').write_bytes((folder/'00004.png').read_bytes())          # the same photo twice: the stricter word counts
    rows[3]['consent'] = 'withdrawn'
    rows.append(rows[4] | dict(file_name='copy.png', consent='no'))
    write()
    report = import_photos(ws, folder, progress=plain)
    assert (report.imported, report.restated, len(report.exact_duplicates)) == (0, 2, 1)
    assert len(barred_photos(ws)) == 5
