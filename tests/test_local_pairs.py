"""Pairs that differ in one part: a photo against itself with a limb, hand, face or box drawn anew."""
import numpy as np
import pandas as pd
import pytest
from conftest import a_flag, Chance, make_workspace, plain, quiet
from hgdpo_curate import (
    flag_images, freeze_split, load_split, score_images, train_curriculum, UserError, workspace_status,
)
from hgdpo_curate.curate.pairs import local_pairs, PAIR, with_pair_ids
from hgdpo_curate.curate.splits import pairs_of, SplitInfo
from hgdpo_curate.files import pair_id_of
from hgdpo_curate.judge.body_parts import body_parts, redraw_photos
from hgdpo_curate.curate.labels import draw_boxes
from hgdpo_curate.tables import FLAGS, HARMLESS_FLAGS
from hypothesis import given, settings, strategies as st

LEVELS = [700, 900]


@pytest.fixture(scope='module')
def redrawn(tmp_path_factory, random_base):
    "A workspace of drawn people whose arms were drawn anew by a random base, scored; frozen before and after."
    ws = make_workspace(tmp_path_factory.mktemp('redrawn')/'ws', random_base, photos=5, n=2)
    freeze_split(ws, 'before', 'chance')
    assert 'hgdpo redraw' in workspace_status(ws)
    redraw_photos(ws, ['arm'], LEVELS, progress=quiet)
    score_images(ws, Chance(), progress=quiet)
    freeze_split(ws, 'after', 'chance')
    return ws


def pixels(ws, path): return np.asarray(ws.open_image(path).convert('RGB')).astype(int)


def test_outside_the_mask_every_pixel_is_the_photos(redrawn):
    images, rows = redrawn.table('images').set_index('image_id'), redrawn.table('redrawn')
    assert len(rows) == 2*2*4 and set(images.loc[rows.image_id].level) == set(LEVELS)
    for r in rows.itertuples():
        made, source = pixels(redrawn, images.path[r.image_id]), pixels(redrawn, images.path[r.source_id])
        inside = np.zeros(made.shape[:2], bool)
        left, top, right, bottom = np.array(r.mask)*[40, 56, 40, 56]
        inside[int(top):int(np.ceil(bottom)), int(left):int(np.ceil(right))] = True
        assert (made[~inside] == source[~inside]).all() and (made[inside] != source[inside]).any()


def test_what_is_stopped_goes_on_and_nothing_is_made_twice(redrawn, copy_of):
    ws, before = copy_of(redrawn), redrawn.table('redrawn')
    assert redraw_photos(ws, ['arm'], LEVELS, progress=quiet) == 0
    def stop(total, label):
        def update(n): raise KeyboardInterrupt
        return update
    with pytest.raises(KeyboardInterrupt): redraw_photos(ws, ['leg'], LEVELS, batch=4, progress=stop)
    assert 0 < (stopped := len(ws.table('redrawn')) - len(before)) < 16
    assert redraw_photos(ws, ['leg'], LEVELS, batch=4, progress=quiet) == 16 - stopped
    assert set(ws.table('redrawn').image_id) == set(ws.table('images').query("domain == 'redrawn'").image_id)


def test_the_split_holds_masks_and_one_without_them_keeps_its_ids(redrawn):
    old, new = load_split(redrawn, 'before'), load_split(redrawn, 'after', verify=True)
    assert 'local' not in old and {s: new.info.content[s] for s in old.info.content} == old.info.content
    assert not (redrawn.folder('splits', 'before')/'local.parquet').exists()
    for s in ('easy', 'normal', 'hard'): pd.testing.assert_frame_equal(old[s], new[s])
    local = new['local']
    assert len(local) == new.info.counts['local'] > 0 and (local.winner_score > local.loser_score).all()
    masks = redrawn.table('redrawn').set_index('image_id')['mask']
    assert all(list(m) == masks[i] for i, m in zip(local.loser_id, local['mask']))
    assert len(local) + len(new.info.dropped['local']) == len(masks) and local.pair_id.is_unique


def test_another_mask_is_another_content(redrawn, copy_of):
    ws = copy_of(redrawn)
    row = ws.table('redrawn').set_index('image_id').loc[[load_split(ws, 'after')['local'].loser_id[0]]].reset_index()
    ws.append('redrawn', row.assign(mask=[[.1, .1, .2, .2]]).drop(columns='written_at'))
    with pytest.raises(UserError, match='another name'): freeze_split(ws, 'after', 'chance')
    other = SplitInfo.read(freeze_split(ws, 'other', 'chance'))
    assert other.content['local'] != load_split(ws, 'after').info.content['local']


def test_a_changed_picture_and_a_changed_file_are_refused(redrawn, copy_of):
    ws = copy_of(redrawn)
    (ws.root/load_split(ws, 'after')['local'].loser_path[0]).unlink()
    with pytest.raises(UserError, match='missing or changed'): load_split(ws, 'after', verify=True)
    file = ws.folder('splits', 'after')/'local.parquet'
    pd.read_parquet(file).iloc[1:].to_parquet(file)
    with pytest.raises(UserError, match='was changed since'): load_split(ws, 'after')


def test_people_and_flags_decide_about_local_pairs(redrawn, copy_of):
    ws, first = copy_of(redrawn), load_split(redrawn, 'after')['local'].iloc[0]
    ws.append('reviews', [dict(subject_id=first.pair_id, decision='swap', reviewer='a', note='')])
    assert first.loser_id not in set(pairs_of(ws, 'chance')['local'].loser_id)
    ws.append('flags', [a_flag(first.winner_id, status='confirmed', source='human', reviewer='a')])
    local = pairs_of(ws, 'chance')['local']
    assert first.winner_id not in set(local.winner_id)
    assert 'its source must not win: confirmed bad_hand' in {d['reason'] for d in local.attrs['dropped']}
    photo = next(i for i in local.winner_id)
    facts = ws.table('photo_facts').query('image_id == @photo').drop(columns='written_at')
    ws.append('photo_facts', facts.assign(consent='withdrawn'))
    assert photo not in set(pairs_of(ws, 'chance')['local'].winner_id)


def test_detectors_look_at_the_new_parts_and_at_what_they_were_made_from(redrawn, copy_of):
    ws = copy_of(redrawn)
    assert redraw_photos(ws, ['leg'], [900], source='t1', limit=2, progress=quiet) == 4
    sources = set(ws.table('redrawn').query("part == 'leg'").source_id)
    assert set(ws.table('images').set_index('image_id').loc[list(sources)].level) == {100}
    left = pairs_of(ws, 'chance')                                                # no other stage waits for their scores
    assert [d['reason'] for d in left['local'].attrs['dropped']].count('not scored yet') == 4 and len(left['easy'])
    score_images(ws, Chance(), progress=quiet)
    assert 'not scored yet' not in {d['reason'] for d in pairs_of(ws, 'chance')['local'].attrs['dropped']}
    flag_images(ws, progress=quiet)
    seen = set(ws.table('detections').image_id)
    assert sources | set(ws.table('redrawn').image_id) <= seen
    assert sources & set(pairs_of(ws, 'chance')['local'].winner_id)


def test_a_false_alarm_that_a_person_denied_on_the_photo_is_none_on_its_pictures(redrawn, copy_of):
    ws = copy_of(redrawn)
    first = load_split(ws, 'after')['local'].iloc[0]
    better = dict(image_id=first.loser_id, scorer='chance', scorer_version='1', score=9.)
    ws.append('scores', [better])
    seen = dict(flag='bad_hand', part='arm', side='left')
    ws.append('flags', [a_flag(i, **seen) for i in (first.winner_id, first.loser_id)])
    assert first.loser_id not in set(pairs_of(ws, 'chance')['local'].loser_id)
    ws.append('flags', [a_flag(first.winner_id, 'ok', 'confirmed', 'human', reviewer='a')])
    assert first.loser_id not in set(pairs_of(ws, 'chance')['local'].loser_id)
    ws.append('flags', [a_flag(first.loser_id, 'extra_limb', part='arm')])
    assert first.loser_id in set(pairs_of(ws, 'chance')['local'].loser_id)


def test_what_was_generated_anew_is_frozen_and_trained_and_an_empty_set_says_why(redrawn, copy_of):
    ws, short = copy_of(redrawn), dict(control='local_alone', max_train_steps=2, train_batch_size=2)
    run = train_curriculum(ws, 'after', 'mannequin-fingers', 'fingers', progress=quiet, **short)
    log = pd.read_parquet(run/'local_alone'/'metrics.parquet')
    assert len(log) == 8 and log.loss.notna().all() and (run/'final').is_dir()
    pictures = ws.table('redrawn').image_id
    ws.append('scores', [dict(image_id=i, scorer='chance', scorer_version='1', score=9.) for i in pictures])
    freeze_split(ws, 'none-kept', 'chance')
    assert not len(load_split(ws, 'none-kept')['local'])
    for split, words in {'none-kept': 'called worse by a score or a flag', 'before': 'without the pairs'}.items():
        with pytest.raises(UserError, match=f'{words}.*hgdpo redraw'):
            train_curriculum(ws, split, 'mannequin-fingers', 'no-pairs', progress=quiet, **short)


@pytest.mark.parametrize('options, words', [
    (dict(parts=['hand']), 'hgdpo flag.*--detector hands'),
    (dict(source='t1'), 'hgdpo recon.*100'),
    (dict(level=[1001]), '1001'),
])
def test_what_cannot_be_drawn_anew_is_refused_in_a_sentence(tmp_path, random_base, options, words):
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    ws = create_workspace(tmp_path/'ws', resolution='40x56', steps=2, base_model=str(random_base))
    import_photos(ws, export_photos(tmp_path/'photos', 3), progress=plain)
    with pytest.raises(UserError, match=words): redraw_photos(ws, progress=quiet, **options)


@pytest.mark.parametrize('box, words', [
    ([100, 100, 5, 5], 'outside'),
    ([0, 0, 40, 56], 'covers more than'),
    ([5, 5, .5, .5], 'smaller than one cell'),
])
def test_a_box_that_cannot_be_used_is_refused(redrawn, copy_of, box, words):
    ws = copy_of(redrawn)
    photos = ws.table('images').query("domain == 'real'").image_id
    about = dict(detector='person:anna', detector_version='1', kind='box', index=0, confidence=1.)
    ws.append('detections', [dict(about, image_id=i, box=[float(v) for v in box]) for i in photos])
    with pytest.raises(UserError, match=words): redraw_photos(ws, ['box'], progress=quiet)


def test_of_two_detectors_that_saw_one_hand_the_surest_counts(redrawn, copy_of):
    ws = copy_of(redrawn)
    photo = ws.table('images').query("domain == 'real'").iloc[:1]
    def hand(detector, confidence, x, side='left', **more):
        about = dict(image_id=photo.image_id.iloc[0], detector_version='1', kind='hand', index=0)
        return dict(about, detector=detector, confidence=confidence, box=[x, 20., 6., 6.], side=side, **more)
    unsure = hand('x', .9, 30., 'right', joint=.1)
    ws.append('detections', [hand('hands', .9, 10.), hand('mediapipe_hands', .8, 11., None), unsure])
    found, unusable = body_parts(ws, photo, ('hand',), 0.)
    assert found.drawn_by.tolist() == ['hands'] and found['mask'].iloc[0] == (.25, 20/56, .4, 26/56) and not unusable
    # what a person drew around it counts before that, and is taken as it was drawn; what they took back does not
    draw_boxes(ws, photo.image_id.iloc[0], [('hand', [10, 21, 8, 7]), ('arm', [30, 10, 6, 20])], 'ben')
    draw_boxes(ws, photo.image_id.iloc[0], [('hand', [10, 21, 8, 7])], 'ben')
    found, unusable = body_parts(ws, photo, ('hand', 'arm', 'box'), .5)
    found = found[found.drawn_by == 'person:ben']
    assert [*found.part] == ['hand'] and found['mask'].iloc[0] == (.25, 21/56, .45, 28/56) and not unusable


@pytest.fixture(scope='module')
def layouts(tmp_path_factory):
    "Stable Diffusion 1.5 and XL in small, with random weights."
    from hgdpo_curate.toy.layouts import random_sd15, random_sdxl
    root = tmp_path_factory.mktemp('layouts')
    return dict(sd15=random_sd15(root/'sd15'), sdxl=random_sdxl(root/'sdxl'))


@pytest.mark.parametrize('layout, sampler, precision', [
    ('sd15', 'dpm', 'no'),
    ('sd15', 'ddim', 'no'),
    ('sd15', 'euler', 'no'),
    ('sd15', 'ddpm', 'no'),
    ('sd15', 'dpm', 'bf16'),
    ('sdxl', 'dpm', 'no'),
])
def test_latents_outside_are_the_sources_in_every_layout_and_sampler(layouts, layout, sampler, precision):
    import torch
    from hgdpo_curate.images.recon import source_latents
    from hgdpo_curate.images.redraw import masked_start
    from hgdpo_curate.masks import mask_cells
    from hgdpo_curate.pipelines import encode_prompts, encode_unconditional, load_pipeline, make_images
    from PIL import Image
    # 96 x 128, so that no level of the U-Net is one column wide: oneDNN's bf16 convolution of stride 2 on CPUs with AMX
    # reads memory beyond such a column, and gives other numbers in every call, NaN among them
    pipe, size = load_pipeline(layouts[layout], 'cpu', precision, sampler), (96, 128)
    rng, masks = np.random.default_rng(0), [(.1, .2, .6, .5), (.5, .5, 1., 1.)]
    sources = [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)) for _ in masks]
    start = masked_start(pipe, sources, masks, 600, [1, 2], 6, size)
    conditions = encode_prompts(pipe, ['a person', 'a hand']), encode_unconditional(pipe)
    made = make_images(pipe, *conditions, [1, 2], size, 6, 3., **start, output_type='latent')
    clean = source_latents(pipe, sources, [1, 2], size)[0].to(made[0].dtype)
    for latents, source, mask in zip(made, clean, masks):
        inside = mask_cells(mask, clean.shape)
        assert latents.isfinite().all() and torch.equal(latents[:, ~inside], source[:, ~inside])
        assert (latents[:, inside] != source[:, inside]).any()


# --- the rule alone

IDS = [f'{i:04d}' for i in range(12)]


@st.composite
def pools(draw): # photos, redrawn pictures of them and of pictures that are not there, flags, reviews
    scores = st.sampled_from([0., .5, 1., float('nan')])
    names = 'image_id', 'prompt_id', 'domain', 'score', 'sha256'
    def picture(i, k, domain, sha): return dict(zip(names, (i, f'q{k}', domain, draw(scores), sha)))
    photos, made, about = [picture(f'p{k}', k, 'real', f's{k}') for k in range(3)], [], []
    for i in IDS[:draw(st.integers(0, len(IDS)))]:
        k = draw(st.integers(0, 3))
        sha = draw(st.sampled_from(['s0', 's1', i]))
        made.append(picture(i, k, 'redrawn', sha))
        part = draw(st.sampled_from(['hand', 'foot', 'face', 'box', 'legs']))
        about.append(dict(image_id=i, source_id=draw(st.sampled_from([f'p{k}', i])), mask=[0., 0., .5, .5], part=part))
    ids = [r['image_id'] for r in photos + made]
    flags = draw(st.lists(st.builds(
        a_flag,
        st.sampled_from(ids),
        st.sampled_from(FLAGS),
        st.sampled_from(['proposed', 'confirmed', 'cleared']),
        part=st.sampled_from(['', 'hand', 'arms', 'feet', 'head', 'torso']),
    ), max_size=8))
    pairs = [pair_id_of('local', r['prompt_id'], a['source_id'], a['image_id']) for r, a in zip(made, about)]
    reviews = draw(st.lists(st.builds(
        lambda s, d: dict(subject_id=s, decision=d, reviewer='a'), st.sampled_from(ids + pairs),
        st.sampled_from(['approve', 'reject', 'duplicate', 'swap'])
    ), max_size=5))
    columns = ['image_id', 'source_id', 'mask', 'part'], [*a_flag('x')], ['subject_id', 'decision', 'reviewer']
    tables = (pd.DataFrame(rows, columns=c) for rows, c in zip((about, flags, reviews), columns))
    return pd.DataFrame(photos + made), *tables


LIMBS = [
    {'hand', 'arms', 'bad_hand'},
    {'foot', 'feet', 'legs', 'bad_foot'},
    {'face', 'head', 'deformed_face', 'extra_face'},
]


def worse(flags, images, loser, winner, redrawn): # plainly, one picture at a time
    score = images.set_index('image_id').score
    stands = flags[flags.status.isin(['proposed', 'confirmed']) & ~flags.flag.isin(HARMLESS_FLAGS)]
    of = {i: {tuple(r) for r in g[['flag', 'part', 'side']].to_numpy()} for i, g in stands.groupby('image_id')}
    def counts(flag, part, side): # a flag of another limb says nothing about the part that is new
        named = [limb for limb in LIMBS if part in limb] or [limb for limb in LIMBS if flag in limb]
        return not named or redrawn == 'box' or redrawn in named[0]
    new = of.get(loser, set()) - of.get(winner, set())
    return bool(score[loser] < score[winner] or any(counts(*f) for f in new))


@settings(deadline=None, max_examples=60)
@given(pools())
def test_the_source_wins_where_something_calls_the_new_part_worse(pool):
    images, redrawn, flags, reviews = pool
    local = local_pairs(images, None, redrawn, flags, reviews)
    dropped, last = local.attrs['dropped'].table, reviews.drop_duplicates('subject_id', keep='last')
    last = last.set_index('subject_id').decision
    about, sha = redrawn.set_index('image_id'), images.set_index('image_id').sha256
    source = about.source_id
    said = with_pair_ids(local, 'local').pair_id.map(last)
    assert list(local) == [*PAIR, 'mask'] and not said.isin(['reject', 'duplicate', 'swap']).any()
    out = {i for i in last.index if last[i] in ('reject', 'duplicate')}
    faulty = set(flags.image_id[(flags.status == 'confirmed') & ~flags.flag.isin(HARMLESS_FLAGS)])
    for r in local.itertuples():
        assert r.winner_id == source[r.loser_id] != r.loser_id and sha[r.winner_id] != sha[r.loser_id]
        assert worse(flags, images, r.loser_id, r.winner_id, about.part[r.loser_id])
        assert not {r.winner_id, r.loser_id} & out and r.winner_id not in faulty
    rejected_pairs = len(dropped[dropped.reason == 'pair rejected'])
    assert len(local) + len(dropped) == len(redrawn) and (dropped.image_id == '').sum() == rejected_pairs
    for i in set(dropped.image_id[dropped.reason == 'nothing calls the new part worse']):
        assert not worse(flags, images, i, source[i], about.part[i])
