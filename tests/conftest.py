"""What the tests share: test data, a small workspace made once, an own MongoDB."""
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
os.environ.update(
    FIFTYONE_DO_NOT_TRACK='true',
    FIFTYONE_DATABASE_VALIDATION='false',
    HF_HUB_DISABLE_TELEMETRY='1',
    HF_HUB_OFFLINE='1',
    TOKENIZERS_PARALLELISM='false',
    MPLBACKEND='agg',
    HGDPO_REVIEWER='tester',
)


def quiet(total, label): return lambda n: None
def plain(items, **k): return items


@pytest.fixture(scope='session')
def test_data():
    "Photographs and models beside the project; not part of it."
    folder = Path(os.environ.get('HGDPO_TEST_DATA', ROOT.parent/'shared'))
    if not (folder/'photos').is_dir():
        pytest.skip(f'no test photographs at {folder}; set HGDPO_TEST_DATA to the folder that holds them')
    return folder


class Chance:
    """A scorer that needs no weights.

    A number from the pixels' hash, so that pool and reconstructions win equally often.
    """
    name, version = 'chance', '1'
    def score(self, images, prompts):
        return np.array([int.from_bytes(hashlib.sha256(i.tobytes()).digest()[:4], 'big')/2**32 for i in images])


def make_workspace(folder, base, photos=8, size='40x56', steps=2, n=3, **config):
    "A workspace with drawn photos, pool, reconstructions and scores."
    from hgdpo_curate import create_workspace, generate_pool, import_photos, reconstruct, score_images
    from hgdpo_curate.toy.drawings import export_photos
    ws = create_workspace(
        folder,
        resolution=size,
        steps=steps,
        guidance=2.0,
        **config,
    )
    import_photos(ws, export_photos(Path(folder).parent/f'{Path(folder).name}-photos', photos, seed=3), progress=plain)
    generate_pool(ws, n, base, progress=quiet)
    reconstruct(ws, progress=quiet)
    score_images(ws, Chance(), progress=quiet)
    return ws


@pytest.fixture(scope='session')
def random_base(tmp_path_factory):
    "A tiny pipeline with random weights."
    from hgdpo_curate.toy.drawings import draw_person
    from hgdpo_curate.toy.networks import save_pipeline, tiny_pipeline
    return save_pipeline(
        tiny_pipeline([draw_person(i).prompt for i in range(20)], (40, 56)),
        tmp_path_factory.mktemp('base') / 'tiny',
        half=False,
    )


@pytest.fixture(scope='session')
def finished(tmp_path_factory, random_base):
    "A workspace ready for training; tests that change it take a copy."
    from hgdpo_curate import freeze_split
    ws = make_workspace(tmp_path_factory.mktemp('finished')/'ws', random_base)
    freeze_split(ws, 'v1', 'chance', controls=True)
    return ws


def tiny_open_clip(image_size, patch_size): # in pixels
    "The settings of an open_clip model of one layer."
    return dict(
        embed_dim=32,
        vision_cfg=dict(image_size=image_size, layers=1, width=32, head_width=16, patch_size=patch_size),
        text_cfg=dict(context_length=77, vocab_size=49408, width=8, heads=2, layers=1),
    )


def a_flag(image_id, flag='bad_hand', status='proposed', source='rule', **more):
    "A row of `flags`."
    return dict(image_id=image_id, flag=flag, status=status, source=source, part='', side='') | more


def nothing_seen(image_id):
    "A row of `detections`: a detector looked and saw nothing."
    about = dict(detector='x', detector_version='1', kind='none', index=0, confidence=0.)
    return dict(image_id=image_id) | about


def a_part_anew(ws, photo, part='hand', side='left', level=600, score=-1., mask=(.1, .5, .4, .8), drawn_by='hands'):
    "A picture of a photo with one part generated anew, scored below it where there is a score; its id."
    from PIL import Image
    from hgdpo_curate.files import short_id
    of = ws.table('images').set_index('image_id').loc[photo]
    image_id = short_id('anew', photo, part, side, level)
    picture = Image.effect_noise(tuple(ws.size), 30 + level/20).convert('RGB')
    about = dict(prompt_id=of.prompt_id, timestep=level, level=level)
    ws.append('images', [ws.save_image(picture, 'redrawn', image_id, **about)])
    made = dict(part=part, side=side, mask=[*mask], drawn_by=drawn_by)
    ws.append('redrawn', [made | dict(image_id=image_id, source_id=photo, prompt_id=of.prompt_id)])
    ws.append('scores', [dict(image_id=image_id, scorer='chance', scorer_version='1', score=score)])
    return image_id


@pytest.fixture
def copy_of(tmp_path):
    "Copies a workspace, so that a test may spoil it."
    import shutil
    from hgdpo_curate import open_workspace
    return lambda ws, name='copy': open_workspace(shutil.copytree(ws.root, tmp_path/name))


def winner(ws):
    "A photo of the easy stage, with the ids and texts that lead to it."
    from hgdpo_curate import load_split
    r = load_split(ws)['easy'].iloc[0]
    photo = ws.table('prompts').set_index('prompt_id').real_image_id[r.prompt_id]
    return dict(
        photo=photo,
        prompt=r.prompt,
        winner=r.winner_id,
        pair=r.pair_id,
        sha=r.winner_sha256,
        original=ws.table('photo_facts').set_index('image_id').original_path[photo],
    )


@pytest.fixture(scope='session')
def lived_in(finished, tmp_path_factory):
    "A workspace with everything a photo leaves traces in: split, run, evaluation, samples, caches, reviews, cards."
    import shutil
    from hgdpo_curate import evaluate_runs, make_card, open_workspace, sample_images, train_curriculum, write_model_card
    ws = open_workspace(
        shutil.copytree(finished.root, tmp_path_factory.mktemp('lived') / 'ws', ignore=shutil.ignore_patterns('runs'))
    )
    train_curriculum(
        ws,
        run='r',
        preset='mannequin',
        train_batch_size=2,
        max_train_steps=1,
        progress=quiet,
    )
    evaluate_runs(
        ws,
        'r',
        per_prompt=1,
        arms=('base', 'easy'),
        scorer=Chance(),
        progress=quiet,
    )
    one = winner(ws)
    sample_images(ws, [one['prompt']], 'r', progress=quiet)
    other = ws.table('images').query("domain == 'real' and image_id != @one['photo']").image_id.iloc[0]
    ws.append(
        'reviews',
        [
            dict(
                subject_id=one['winner'],
                decision='reject',
                reviewer='a',
                note='',
            ),
            dict(
                subject_id=one['pair'],
                decision='swap',
                reviewer='a',
                note='',
            ),
            dict(
                subject_id=other,
                decision='duplicate',
                reviewer='a',
                note=f'a duplicate of {one["photo"]}',
            ),
        ],
    )
    ws.append(
        'duplicates',
        [
            dict(
                image_id=other,
                other_id=one['photo'],
                kind='near',
                distance=0.1,
            )
        ],
    )
    ws.append(
        'flags',
        [
            dict(
                image_id=one['winner'],
                flag='bad_hand',
                status='proposed',
                confidence=1.0,
                source='human',
                part='',
                side='',
                reason='',
                rule_version='',
                reviewer='a',
            )
        ],
    )
    ws.append(
        'detections',
        [
            dict(
                image_id=one['photo'],
                detector='insightface',
                detector_version='1',
                kind='face',
                index=0,
                box=[0, 0, 1, 1],
                keypoints=None,
                confidence=1.0,
            )
        ],
    )
    make_card(ws)
    write_model_card(ws, 'r')
    return ws


@pytest.fixture(scope='session')
def mongo(tmp_path_factory):
    "An own MongoDB, so that no FiftyOne elsewhere on the machine is touched."
    from hgdpo_curate.curate.database import start_database
    process = start_database(tmp_path_factory.mktemp('mongo'))
    yield process
    process.terminate()
    process.wait()


def seen_alone(page, widths): # a file; widths of the window in pixels at which nothing may stick out
    "Open a page in Chromium: it asks for nothing but itself, complains of nothing, and shows every picture."
    import shutil
    from playwright.sync_api import sync_playwright
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not chromium: pytest.skip('no Chromium to open the page in')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        tab = browser.new_page()
        asked, said = [], []
        tab.on('request', lambda r: asked.append(r.url))
        tab.on('console', lambda m: said.append(m.text))
        tab.goto(page.as_uri())
        assert [u for u in asked if not u.startswith('data:')] == [page.as_uri()] and not said
        assert tab.evaluate('document.images.length') >= 2 and tab.evaluate(
            '[...document.images].every(i => i.complete && i.naturalWidth > 0)'
        )
        for width in widths:
            tab.set_viewport_size(dict(width=width, height=800))
            assert tab.evaluate('document.documentElement.scrollWidth') <= width
        if shots := os.environ.get('HGDPO_SCREENSHOTS'): tab.screenshot(path=f'{shots}/{page.stem}.png', full_page=True)
        browser.close()
