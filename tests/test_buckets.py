"""Portraits, landscapes and squares in one workspace: a photo, its pool and its pairs have one of several shapes."""
import base64
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import Chance, plain, quiet
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from short_runs import adapters, KW, same, stop_after

from hgdpo_curate import create_workspace, import_photos
from hgdpo_curate.files import bytes_a_pixel, UsageError, UserError
from hgdpo_curate.images.decode import fit_window
from hgdpo_curate.shapes import bucket_shapes, nearest_shape, prompt_sizes, share_lost, shapes_of

SHAPES = dict(tall=(40, 64), square=(48, 48), wide=(64, 40))
AREA = 48*48


def gradient(size, seed) -> Image.Image:
    rng, (w, h) = np.random.default_rng(seed), size
    x, y = np.meshgrid(np.linspace(0, 1, w), np.linspace(0, 1, h))
    mix = rng.uniform(0, 255, (3, 3))
    return Image.fromarray(np.clip(mix[0] + mix[1]*x[..., None] - mix[2]*y[..., None], 0, 255).astype(np.uint8))


def mixed_folder(folder, each=3, scale=10, more=()):
    "Gradients of three shapes, `each` of them many, with captions; more: (file, size) of others."
    folder.mkdir(parents=True)
    sizes = {f'{name}{k}.png': (w*scale, h*scale) for name, (w, h) in SHAPES.items() for k in range(each)} | dict(more)
    for seed, (file, size) in enumerate(sizes.items()): gradient(size, seed).save(folder/file)
    rows = [json.dumps(dict(file_name=f, text=f'a gradient called {f}')) for f in sizes]
    (folder/'metadata.jsonl').write_text('\n'.join(rows))
    return folder


def mixed_workspace(folder, **config):
    return create_workspace(folder, **dict(resolution='48', buckets=True, bucket_step=8, steps=2, guidance=2.) | config)


areas, steps = st.sampled_from([256**2, 512**2, 640*704, 768**2, 1024**2]), st.sampled_from([8, 16, 32, 64])


@settings(deadline=None, max_examples=40)
@given(areas, steps)
def test_shapes_are_of_the_area_and_mirror_each_other(area, step):
    shapes = bucket_shapes(area, step)
    assert len({*shapes}) == len(shapes) >= 5
    for w, h in shapes:
        assert w%step == h%step == 0 and max(w, h) <= 2*min(w, h) and abs(w*h/area - 1) <= 1/6
        assert (h, w) in shapes
    ratios = [w/h for w, h in shapes]
    assert ratios == sorted(ratios) and min(b/a for a, b in zip(ratios, ratios[1:])) > 1.04


@settings(deadline=None)
@given(st.integers(200, 6000), st.integers(200, 6000), areas)
def test_a_photo_takes_the_shape_that_loses_least_of_it(width, height, area):
    shapes = bucket_shapes(area)
    chosen = nearest_shape(width, height, shapes)
    lost = {s: share_lost((width, height), s) for s in shapes}
    assert lost[chosen] <= min(lost.values()) + 1e-6
    l, t, r, b = fit_window(width, height, chosen)
    assert (r - l)*(b - t)/(width*height) == pytest.approx(1 - lost[chosen])
    if area >= 512**2 and max(width, height) <= 2*min(width, height): assert lost[chosen] < .07


def test_an_area_without_a_shape_of_its_steps_has_the_nearest_one():
    assert bucket_shapes(64*64, 64) == ((64, 64),)
    assert bucket_shapes(100*100, 64) == ((64, 128), (128, 64))
    assert bucket_shapes(1, 8) == ((8, 8),)


def test_street_keeps_every_head_and_foot_and_nearly_all_of_every_picture(test_data):
    street, shapes, most = test_data/'photos'/'street', bucket_shapes(512**2), 0
    rows = [json.loads(line) for line in (street/'metadata.jsonl').read_text().splitlines()]
    assert len(rows) > 1000
    for r in rows:
        with Image.open(street/r['file_name']) as im: size = im.size
        shape, (l, t, right, b) = nearest_shape(*size, shapes), r['person_box']
        window = fit_window(*size, shape, r['person_box'])
        assert window[1] <= max(t, 0) + .01 and window[3] >= min(b, size[1]) - .01, r['file_name']
        assert window[0] <= max(l, 0) + .01 and window[2] >= min(right, size[0]) - .01, r['file_name']
        most = max(most, share_lost(size, shape))
    assert most < .05


def test_an_import_gives_each_photo_its_shape_and_says_what_it_loses(tmp_path):
    ws = mixed_workspace(tmp_path/'ws')
    more = [('thin.png', (200, 1000)), ('nearly.png', (410, 600)), ('small.png', (24, 24))]
    report = import_photos(ws, mixed_folder(tmp_path/'photos', more=more), progress=plain)
    names = ws.table('photo_facts').set_index('image_id').original_path.str.rsplit('/').str[-1]
    images = ws.table('images').assign(name=lambda d: d.image_id.map(names)).set_index('name')
    for name, (w, h) in SHAPES.items():
        assert (images.width[f'{name}0.png'], images.height[f'{name}0.png']) == (w, h)
    assert all(ws.open_image(r.path).size == (r.width, r.height) for r in images.itertuples())
    assert {*zip(images.width, images.height)} <= {*shapes_of(ws)}
    assert (images.width['thin.png'], images.height['thin.png']) == (32, 64)
    sizes, of_photo = prompt_sizes(ws), images.set_index('image_id')
    for p in ws.table('prompts').itertuples():
        assert sizes[p.prompt_id] == (of_photo.width[p.real_image_id], of_photo.height[p.real_image_id])
    said = str(report)
    assert '48 x 48: 4' in said and 'at most 60.0% (thin.png)' in said
    assert 'longer than any shape, 1:2 (thin.png)' in said
    assert re.search(r'\w+.png, \w+.png are the only photos of their shapes', said) and '--resolution' not in said
    assert 'smaller than the training images and enlarged' in said and 'small.png' in said


def test_small_networks_are_not_recommended_where_they_refuse_the_shapes(tmp_path):
    from hgdpo_curate.images.pool import base_of
    from hgdpo_curate.judge.scores import workspace_scorer
    for buckets in (True, False):
        ws = mixed_workspace(tmp_path/str(buckets), buckets=buckets, resolution='48' if buckets else '48x48')
        for refused in (lambda: base_of(ws), lambda: workspace_scorer(ws)):
            with pytest.raises(UserError) as e: refused()
            assert ('hgdpo tiny' in str(e.value)) is not buckets


def test_a_photo_longer_than_any_shape_is_padded_or_left_out_where_that_is_asked(tmp_path):
    folder = mixed_folder(tmp_path/'photos', 1, more=[('thin.png', (200, 1000))])
    out = import_photos(mixed_workspace(tmp_path/'out'), folder, progress=plain, fit='leave_out')
    assert out.imported == 3 and 'thin.png' in out.refused[0]
    ws = mixed_workspace(tmp_path/'pad')
    import_photos(ws, folder, progress=plain, fit='pad')
    facts = ws.table('photo_facts').set_index('original_path').fit
    assert facts[str(folder/'thin.png')][0] < 0                       # plain gray on both sides
    assert {im.size for im in map(ws.open_image, ws.table('images').path)} == {*SHAPES.values(), (32, 64)}


def test_a_workspace_of_one_resolution_is_not_opened_with_buckets(tmp_path):
    create_workspace(tmp_path/'one', resolution='64')
    with pytest.raises(UserError, match='buckets = False.*another folder'):
        create_workspace(tmp_path/'one', resolution='64', buckets=True)
    with pytest.raises(UsageError, match='no shape has sides of 64 pixels'):
        create_workspace(tmp_path/'two', resolution='48', buckets=True)
    with pytest.raises(UsageError, match='bucket_step is 12'):
        create_workspace(tmp_path/'two', resolution='48', buckets=True, bucket_step=12)


@pytest.fixture(scope='module')
def mixed(tmp_path_factory, random_base):
    "A workspace of photos of three shapes, with pool, reconstructions, scores and a frozen split."
    from hgdpo_curate import freeze_split, generate_pool, reconstruct, score_images
    root = tmp_path_factory.mktemp('mixed')
    ws = mixed_workspace(root/'ws', test_share=1/3)
    import_photos(ws, mixed_folder(root/'photos', 6), progress=plain)
    generate_pool(ws, 3, random_base, progress=quiet)
    reconstruct(ws, progress=quiet)
    score_images(ws, Chance(), progress=quiet)
    freeze_split(ws, 'v1', 'chance', controls=True)
    return ws


def test_all_that_is_made_from_a_prompt_has_the_shape_of_its_photo(mixed, random_base):
    from hgdpo_curate import generate_pool
    images, sizes = mixed.table('images'), prompt_sizes(mixed)
    made = images.query("domain != 'real'")
    assert len(made) > 90 and {*sizes.values()} == {*SHAPES.values()}
    assert [*zip(made.width, made.height)] == [sizes[p] for p in made.prompt_id]
    assert all(mixed.open_image(r.path).size == (r.width, r.height) for r in made.itertuples())
    assert generate_pool(mixed, 3, random_base, progress=quiet) == 0


def test_both_images_of_a_pair_have_one_shape(mixed):
    from hgdpo_curate import load_split
    size = mixed.table('images').set_index('image_id')[['width', 'height']]
    for stage in ('easy', 'normal', 'hard'):
        pairs = load_split(mixed)[stage]
        assert len(pairs) and (size.loc[pairs.winner_id].values == size.loc[pairs.loser_id].values).all(), stage


def test_the_same_photos_of_one_shape_give_the_same_bits_with_and_without_buckets(tmp_path, random_base):
    from hgdpo_curate import generate_pool
    folder, kept = tmp_path/'photos', {}
    folder.mkdir()
    for k in range(3): gradient((480, 480), k).save(folder/f'{k}.png')
    rows = [json.dumps(dict(file_name=f'{k}.png', text=f'gradient {k}')) for k in range(3)]
    (folder/'metadata.jsonl').write_text('\n'.join(rows))
    for buckets in (False, True):
        ws = mixed_workspace(tmp_path/str(buckets), buckets=buckets, test_share=0.)
        import_photos(ws, folder, progress=plain)
        generate_pool(ws, 2, random_base, progress=quiet)
        kept[buckets] = dict(ws.table('images')[['image_id', 'sha256']].values.tolist())
    assert len(kept[True]) > 6 and kept[True] == kept[False]


counts = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(counts, st.integers(1, 20), st.integers(0, 5), st.sampled_from([1, 2, 3]))
def test_every_pair_is_trained_on_equally_often_and_a_step_has_one_shape(counts, batch, seed, processes):
    from hgdpo_curate.train.batches import ShapeOrder, shuffled_order, step_indices
    order, seen = ShapeOrder(counts, batch*processes, seed), [np.zeros(n, int) for n in counts]
    for step in range(sum(counts)):                                     # a round: as many steps as pairs
        shapes = set()
        for process in range(processes):
            shape, at = order.of_shape(step_indices(step, batch*processes, process, processes))
            shapes.add(shape)
            np.add.at(seen[shape], shuffled_order(counts[shape], seed, at, shape), 1)
        assert len(shapes) == 1
    assert all((n == batch*processes).all() for n in seen)
    late = ShapeOrder(counts, batch, seed)
    assert late.of_shape(step_indices(7, batch))[0] == ShapeOrder(counts, batch, seed).shape_of(7)[0]
    if len(counts) == 1: assert [*late.of_shape(step_indices(3, batch))[1]] == [*step_indices(3, batch)]


@pytest.mark.parametrize('more', [{}, dict(fixed_draws=2, control='easy_only'), dict(control='curriculum_dpo')])
def test_training_on_three_shapes_resumes_to_the_bit(mixed, more):
    from hgdpo_curate import train_curriculum
    name, kw = ''.join(map(str, more.values())) or 'all', KW | more
    whole = adapters(train_curriculum(mixed, run=f'whole-{name}', progress=quiet, **kw))
    with pytest.raises(KeyboardInterrupt):
        train_curriculum(mixed, run=f'stopped-{name}', progress=stop_after(5), **kw)
    again = adapters(train_curriculum(mixed, run=f'stopped-{name}', progress=quiet, **kw))
    assert same(whole, again)


def test_two_processes_train_on_three_shapes_as_one_does_in_two_passes(mixed):
    from hgdpo_curate import train_curriculum
    kw = KW | dict(control='easy_only', max_train_steps=8)
    code = ('import sys\nfrom hgdpo_curate.train.curriculum import train_curriculum\n'
            f'train_curriculum({str(mixed.root)!r}, run=sys.argv[1], device="cpu", '
            f'progress=lambda total, label: lambda n: None, **{kw!r})')
    (mixed.root/'two.py').write_text(code)
    launch = '--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no'
    port = '--num_cpu_threads_per_process 1 --main_process_port 0'
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'accelerate.commands.launch',
            *launch.split(),
            *port.split(),
            str(mixed.root/'two.py'),
            'two-processes',
        ],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(p) for p in sys.path if p])),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = adapters(mixed.root/'runs'/'two-processes')
    one = adapters(train_curriculum(mixed, run='two-passes', gradient_accumulation_steps=2, progress=quiet, **kw))
    assert same(two, one)


def test_a_step_has_one_shape_and_its_halves_are_the_step(mixed):
    import torch

    from hgdpo_curate import load_split
    from hgdpo_curate.pipelines import load_pipeline, model_hash
    from hgdpo_curate.train.batches import check_pairs, step_indices
    from hgdpo_curate.train.cache import TrainingCache
    from hgdpo_curate.train.passes import make_reader
    from hgdpo_curate.train.presets import load_preset
    preset, easy = load_preset('mannequin', train_batch_size=4), load_split(mixed)['easy']
    pipe, cache = load_pipeline(mixed.base_model, 'cpu'), TrainingCache(mixed, model_hash(mixed.base_model))
    files = {h: p for w in ('winner', 'loser') for h, p in zip(easy[f'{w}_sha256'], easy[f'{w}_path'])}
    cache.fill(pipe, files, easy.prompt, progress=quiet)
    stage = preset.stage('easy')
    pairs = check_pairs(easy, stage)
    read, sizes, seen = make_reader(pipe, cache, stage, preset, pairs, 4), prompt_sizes(mixed), set()
    for step in range(8):
        batch, halves = read(step_indices(step, 4)), [read(step_indices(step, 4, k, 2)) for k in (0, 1)]
        assert len({sizes[p] for p in pairs.prompt_id.iloc[batch.pair]}) == 1
        width, height = sizes[pairs.prompt_id.iloc[batch.pair[0]]]
        assert read(step_indices(step, 4)).noisy.equal(batch.noisy)
        assert torch.cat([h.noisy[:2] for h in halves]).equal(batch.noisy[:4])
        from hgdpo_curate.families import family_of
        assert family_of(pipe).picture_size(pipe, batch.noisy) == (width, height)
        seen.add((width, height))
    assert len(seen) == 3


def test_a_pair_of_two_shapes_is_refused(mixed):
    from hgdpo_curate.train.batches import pairs_by_shape
    import pandas as pd

    class Cache:
        def latent_shape(self, sha256): return (4, 5, 8) if sha256 == 'tall' else (4, 6, 6)
    pairs = pd.DataFrame(dict(pair_id=['a', 'b'], winner_sha256=['tall', 'square'], loser_sha256=['tall', 'tall']))
    with pytest.raises(UserError, match='pair b have two shapes'): pairs_by_shape(Cache(), pairs)
    assert pairs_by_shape(Cache(), pairs, ('winner',)).keys() == {(4, 5, 8), (4, 6, 6)}


def test_validation_draws_at_the_shape_of_each_photo(mixed):
    from hgdpo_curate import train_curriculum
    drawn = []

    class Watching(Chance):
        def score(self, images, prompts):
            drawn.append(dict(zip(prompts, [i.size for i in images])))
            return super().score(images, prompts)
    train_curriculum(
        mixed,
        run='validated',
        progress=quiet,
        control='easy_only',
        validation_steps=3,
        keep_best='chance',
        scorer=Watching(),
        **KW | {'inference.steps': 2},
    )
    sizes, texts = prompt_sizes(mixed), mixed.table('prompts').set_index('prompt').prompt_id
    assert drawn and all(size == sizes[texts[text]] for of in drawn for text, size in of.items())
    assert len({size for of in drawn for size in of.values()}) > 1


class Corners:
    "A feature extractor that says which sizes it was given."
    name, version = 'corners', '1'
    def __init__(self): self.sizes = []

    def extract(self, images):
        self.sizes += [im.size for im in images]
        return np.stack([np.asarray(im.convert('L').resize((2, 2)), np.float32).ravel() for im in images])


@pytest.fixture(scope='module')
def measured(mixed):
    "A run of one step on three shapes, its evaluation, and its report with photos."
    from hgdpo_curate import train_curriculum
    from hgdpo_curate.evaluate.report import report_runs
    kw, corners = KW | dict(max_train_steps=1, train_batch_size=16), Corners()
    with pytest.warns(UserWarning, match='takes 16 pairs of one shape, but 3 of 3 shapes have fewer'):
        train_curriculum(mixed, run='measured', progress=quiet, control='easy_only', **kw)
    report = report_runs(
        mixed,
        'measured',
        ('base', 'easy'),
        with_photos=True,
        per_prompt=1,
        scorer=Chance(),
        extractor=corners,
        progress=quiet,
    )
    return report, corners


def test_an_evaluation_a_plan_and_the_cards_know_the_shapes(mixed, measured):
    import pandas as pd

    from hgdpo_curate import make_card, plan_workspace, sample_images, workspace_status, write_model_card
    from hgdpo_curate.tables import DOMAIN_WORDS
    images, sizes = mixed.table('images'), prompt_sizes(mixed)
    made = images.query("domain == 'evaluation'")
    assert len(made) and [*zip(made.width, made.height)] == [sizes[p] for p in made.prompt_id]
    assert {*measured[1].sizes} == {mixed.size} and len(measured[1].sizes) >= len(made) + 18
    table = pd.read_parquet(measured[0].parent/'table.parquet').set_index(['arm', 'metric']).value
    assert all(table[arm, 'frechet'] > 0 for arm in ('base', 'easy'))
    card = make_card(mixed).path.read_text()
    assert f"| shape | {DOMAIN_WORDS['real']} | {DOMAIN_WORDS['generated']} |" in card and '| 40x64 | 6 |' in card
    loading = write_model_card(mixed, 'measured').path.read_text().partition('## How to load it')[2]
    trained = [prompt_sizes(mixed)[p] for p in mixed.table('prompts').query("fold == 'train'").prompt_id]
    for width, height in SHAPES.values(): assert f'| {width} | {height} | {trained.count((width, height))} |' in loading
    drawn = {*re.findall(r'width=(\d+), height=(\d+)', loading)}
    assert len(drawn) == 1 and tuple(map(int, *drawn)) in SHAPES.values()
    plan = plan_workspace(mixed, n=4, images_per_second=1., pairs_per_second=1.)
    assert 'shapes of about 48 x 48' in str(plan)
    pixels, pool = np.mean([w*h for w, h in sizes.values()]), next(w for w in plan.work if w.step == 'pool')
    assert pixels > AREA and pool.disk/pool.count == pytest.approx(bytes_a_pixel(mixed.config)*pixels)
    assert 'in shapes of that area' in workspace_status(mixed) and 'in shapes of that area' in mixed._repr_html_()
    texts = mixed.table('prompts').set_index('prompt_id').prompt.to_dict()
    tall = next(texts[p] for p, size in sizes.items() if size == SHAPES['tall'])
    files = sample_images(mixed, [tall, 'a text of nobody'], 'measured', progress=quiet)
    assert [Image.open(f).size for f in files] == [SHAPES['tall'], SHAPES['square']]


def test_the_grid_of_a_report_shows_every_picture_whole_and_side_by_side(mixed, measured):
    page = measured[0].read_text()
    grid = page.partition('<table class=grid>')[2].partition('</table>')[0]
    rows = [re.findall(r'height=(\d+) .*?base64,([^"]+)"', row) for row in grid.split('<tr>')]
    rows = [row for row in rows if row]
    assert [len(row) for row in rows] == [6, 6, 6]                               # photo, base, easy
    for row in rows:
        pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in row]
        assert {im.size for im in pictures} == {*SHAPES.values()}                # as they are stored: nothing cut
        shown = [im.width*int(height)/im.height for (height, _), im in zip(row, pictures)]
        assert len({height for height, _ in row}) == 1 and 900 < sum(shown) + 4*len(row) <= 1180 - 48


@pytest.mark.usefixtures('mongo')
def test_the_app_knows_the_shape_of_each_picture(mixed):
    from hgdpo_curate import build_dataset
    ds, of = build_dataset(mixed), mixed.table('images').set_index('image_id')
    ids, widths, heights = ds.values(['image_id', 'metadata.width', 'metadata.height'])
    assert [*zip(widths, heights)] == [*zip(of.width[ids], of.height[ids])] and len({*zip(widths, heights)}) == 3
    ds.delete()


def test_a_sheet_keeps_the_shape_of_each_picture():
    from hgdpo_curate.show import contact_sheet
    pictures = [Image.new('RGB', size, 'black') for size in ((40, 64), (64, 40), (48, 48))]
    sheet = np.asarray(contact_sheet(pictures, 3, height=64, gap=(0, 0)))
    wide = round(64*64/40)
    assert sheet.shape == (64, 3*wide, 3)
    dark = (sheet[32] == 0).all(-1).reshape(3, wide).sum(1)
    assert [*dark] == [40, wide, 64]


def test_a_new_workspace_with_a_base_has_buckets_unless_it_names_one_shape(tmp_path, capsys):
    from hgdpo_curate import open_workspace
    from hgdpo_curate.cli import main
    base = ['--pretrained_model_name_or_path', 'owner/base']
    told = dict(
        plain=(base, True),
        large=([*base, '--resolution', '1024'], True),
        off=([*base, '--no_buckets'], False),
        one=([*base, '--resolution', '512x768'], False),
        area=([*base, '--resolution', '512x768', '--buckets'], True),
        paper=([*base, '--preset', 'sd15-paper'], False),
        small=([*base, '--resolution', '256'], False),
        drawn=(['--pretrained_model_name_or_path', 'mannequin'], False),
        none=([], False),
    )
    for name, (flags, buckets) in told.items():
        assert main(['init', '--workspace', str(tmp_path/name), *flags]) == 0
        assert open_workspace(tmp_path/name).config['buckets'] is buckets, name
    assert open_workspace(tmp_path/'paper').size == (704, 1024)
    assert main(['init', '--workspace', str(tmp_path/'plain'), *base]) == 0               # opened again, without a word
    assert create_workspace(tmp_path/'python', base_model='owner/base').config['buckets'] is True
    assert main(['init', '--workspace', str(tmp_path/'one'), *base, '--resolution', '512x768', '--buckets']) == 1
    assert 'buckets = False' in capsys.readouterr().err


def test_a_base_is_fine_tuned_on_photos_of_three_shapes_and_resumes_to_the_bit(tmp_path, random_base):
    from hgdpo_curate import generate_pool, train_sft
    from hgdpo_curate.pipelines import model_hash
    folder, kw = mixed_folder(tmp_path/'photos'), dict(max_train_steps=6, train_batch_size=2)
    hashes = []
    for name in ('whole', 'stopped'):
        ws = mixed_workspace(tmp_path/name, test_share=0., base_model=random_base)
        import_photos(ws, folder, progress=plain)
        if name == 'stopped':
            with pytest.raises(KeyboardInterrupt): train_sft(ws, progress=stop_after(5), **kw)
        train_sft(ws, progress=quiet, **kw)
        hashes.append(model_hash(ws.base_model))
    assert hashes[0] == hashes[1] != model_hash(random_base)
    assert generate_pool(ws, 2, progress=quiet) == 2*(ws.table('prompts').fold == 'train').sum() > 0


def test_the_small_networks_are_of_one_shape(mixed):
    from hgdpo_curate.train.small_models import train_tiny
    with pytest.raises(UserError, match='several shapes.*--no_buckets'): train_tiny(mixed)


def test_sdxl_is_told_the_shape_of_a_picture(tmp_path):
    import torch

    from hgdpo_curate.families import family_of
    from hgdpo_curate.pipelines import encode_prompts, encode_unconditional, load_pipeline, make_images
    from hgdpo_curate.toy.layouts import random_sdxl
    pipe = load_pipeline(random_sdxl(tmp_path/'xl'), 'cpu')
    family, told = family_of(pipe), []
    pipe.unet.register_forward_pre_hook(
        lambda net, args, kwargs: told.append(kwargs['added_cond_kwargs']['time_ids']), with_kwargs=True
    )
    conditioning = {k: v.detach() for k, v in family.condition(pipe, ['a person']).items()}
    for width, height in ((128, 192), (192, 128)):
        noisy = torch.zeros(1, 4, height//8, width//8)
        size = family.picture_size(pipe, noisy)
        with torch.no_grad(): family.predict(pipe, noisy, torch.tensor([1]), conditioning, size)
        assert told[-1].tolist() == [[height, width, 0, 0, height, width]]
        asked = encode_prompts(pipe, ['a person']), encode_unconditional(pipe)
        image, = make_images(pipe, *asked, [1], (width, height), 1, 2.)                    # as the pool draws
        assert image.size == (width, height)
        assert {*map(tuple, told[-1].tolist())} == {(height, width, 0, 0, height, width)}
