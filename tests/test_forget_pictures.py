"""What may show a person outside the tables goes with the photo.

Features, pages, grids, samples drawn with the face.
"""
import base64
import shutil

import pandas as pd
from conftest import quiet, winner
from test_forget import grep, without_cards

from hgdpo_curate import forget
from hgdpo_curate.document.search import search
from hgdpo_curate.document.footprint import footprint_of
from hgdpo_curate.files import read_json, write_json


def test_features_of_the_photo_go_and_those_of_others_stay(lived_in, copy_of):
    """Inception's and CLIP's are kept in the workspace, those of the small evaluator are not.

    An archive of earlier versions hides its ids.
    """
    import numpy as np

    from hgdpo_curate.evaluate.features import features_of
    ws = copy_of(lived_in)
    one, calls = winner(ws), []
    without_cards(ws)
    class Colour:
        name, version = 'colour', '1'
        def extract(self, images):
            calls.append(len(images))
            return [np.asarray(i).mean((0, 1)) for i in images]
    features_of(ws, ws.table('images'), Colour(), progress=quiet)
    packed = {'cache/features/inception-1.npz', 'cache/features/all.tar'}
    for f in packed:
        (ws.root/f).parent.mkdir(exist_ok=True)
        with open(ws.root/f, 'wb') as out:
            np.savez_compressed(out, ids=np.array([one['photo'], one['winner']]), features=np.ones((2, 3)))
    t = footprint_of(ws, one['photo'])
    assert packed <= set(search(ws, t, quiet).found)
    gone = forget(ws, one['photo'], app=False, progress=quiet)
    assert packed <= set(gone.done) and not any((ws.root/f).exists() for f in packed)
    assert grep(ws.root/'cache', *t.images, *('\0\0\0'.join(i) for i in t.images)) == []
    kept, calls[:] = ws.table('images'), []
    assert len(features_of(ws, kept, Colour(), progress=quiet)) == len(kept) and not calls


def test_pages_and_grids_of_other_runs_that_may_show_the_photo_go(lived_in, copy_of):
    "A report shows the photos nearest to what a model drew, whoever was trained on what, scaled and as JPEG."
    import io

    from hgdpo_curate.evaluate.report import picture
    ws = copy_of(lived_in)
    one = winner(ws)
    without_cards(ws)
    other = ws.table('images').query("domain == 'real' and image_id != @one['photo']").path.iloc[0]
    shrunk, out = (
        ws.open_image(ws.table('images').set_index('image_id').path[one['photo']]).resize((30, 42)),
        io.BytesIO(),
    )
    shrunk.save(out, 'JPEG')
    shutil.copytree(ws.root/'splits'/'v1', ws.root/'splits'/'others')
    # a split without the photo
    for f in (ws.root/'splits'/'others').glob('*.parquet'): pd.read_parquet(f).head(0).to_parquet(f)
    for run, split in (('o', 'others'), ('lost', 'was deleted')):
        write_json(ws.root/'runs'/run/'config.json', read_json(ws.root/'runs'/'r'/'config.json') | dict(split=split))
        (ws.root/'runs'/run/'evaluation').mkdir()
        (ws.root/'runs'/run/'evaluation'/'grid.png').write_bytes((ws.root/other).read_bytes())
    pages = {
        'runs/o/evaluation/report.html': picture(shrunk),
        'page.HTM': f'<img src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}">',
        'notes.html': f'<a href="x">{one["photo"]}</a>',
    }
    for name, text in pages.items(): (ws.root/name).write_text(text)
    (ws.root/'plain.html').write_text('<p>nothing is shown here</p>')
    would = forget(ws, one['photo'], dry_run=True, progress=quiet)
    gone = forget(ws, one['photo'], app=False, progress=quiet)
    went = {*pages, 'runs/lost/evaluation/grid.png'}
    assert (
        {f for f in gone.done if gone.done[f] == 'deleted (may show it)'} >= went
        and not any((ws.root / f).exists() for f in went)
        and set(would.done) == set(gone.done)
    )
    assert (
        (ws.root / 'plain.html').exists()
        and (ws.root / 'runs' / 'o' / 'evaluation' / 'grid.png').exists()
        and 'o' not in gone.traces.runs
    )


def test_a_picture_among_the_samples_that_cannot_be_read_goes_and_stops_nothing(lived_in, copy_of):
    ws = copy_of(lived_in)
    without_cards(ws)
    broken = {
        'samples/empty.png': b'',
        'samples/film.mp4': b'\0\0\0 ftypisom',
        'samples/sheet.pdf': b'%PDF-1.4',
        'samples/cut.jpg': b'\xff\xd8\xff',
    }
    for name, data in broken.items(): (ws.root/name).write_bytes(data)
    would = forget(ws, winner(ws)['photo'], dry_run=True, progress=quiet)
    gone = forget(ws, winner(ws)['photo'], app=False, progress=quiet)
    assert broken.keys() <= gone.done.keys() == would.done.keys() and not list((ws.root/'samples').glob('*'))


def test_samples_drawn_with_the_face_go_and_those_with_another_stay(lived_in, copy_of, tmp_path, monkeypatch):
    """Whatever their prompt.

    The face comes from the user's file, from an image of the workspace, or from an embedding, which does not tell whose
    it is.
    """
    from types import SimpleNamespace

    import numpy as np
    from PIL import Image

    from hgdpo_curate import sample_images
    from hgdpo_curate.train import samples
    ws = copy_of(lived_in)
    one, paths = winner(ws), ws.table('images').set_index('image_id').path
    without_cards(ws)
    monkeypatch.setattr(samples, 'face_embedding', lambda face, *a: None)
    monkeypatch.setattr(
        samples,
        'load_personalised',
        lambda *a, **kw: (
            lambda prompt, generator, width, height: SimpleNamespace(images=[Image.new('RGB', (width, height))])
        ),
    )
    (tmp_path/'adapter.bin').write_bytes(b'stands for one')
    np.save(tmp_path/'face.npy', np.ones(512))
    other = ws.table('photo_facts').query("image_id != @one['photo']").original_path.iloc[0]
    drawn = {
        str(face): sample_images(
            ws,
            ['in a garden'],
            'r',
            progress=quiet,
            face=face,
            ip_adapter=tmp_path / 'adapter.bin',
        )[0]
        for face in (one['original'], ws.root / paths[one['winner']], tmp_path / 'face.npy', other)
    }
    assert len({*drawn.values()}) == 4
    would = forget(ws, one['photo'], dry_run=True, progress=quiet)
    gone = forget(ws, one['photo'], app=False, progress=quiet)
    assert [f for f, file in drawn.items() if file.exists()] == [other] and would.done.keys() == gone.done.keys()
