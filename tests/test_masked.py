"""Local pairs in training: a photo against itself with one part drawn otherwise, and errors weighted by its mask."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import quiet
from PIL import Image
from short_runs import adapters, same, stop_after

from hgdpo_curate.files import UsageError, UserError, file_sha256

KW = dict(
    preset='mannequin-fingers',
    train_batch_size=2,
    max_train_steps=4,
    checkpointing_steps=2,
    report_to='none',
    progress=quiet,
)
# as shares of the picture: an arm, a leg
PARTS = (.6, .3, .95, .6), (.2, .6, .55, .95)


def with_local_pairs(ws, masks=PARTS):
    """Add the set `local` to the frozen split, where the sets of controls stand.

    The loser is the photo with the part of another person.
    """
    folder = ws.root/'splits'/'v1'
    real = pd.read_parquet(folder/'controls.parquet').query("stage == 'naive'").reset_index(drop=True)
    images, rows = ws.table('images').set_index('image_id', drop=False), []
    for k, r in real.iterrows():
        mask, photo = masks[k % len(masks)], ws.open_image(r.winner_path).convert('RGB')
        other = ws.open_image(real.winner_path[(k + 1) % len(real)]).convert('RGB').resize(photo.size)
        box = tuple(round(x*n) for x, n in zip(mask, photo.size*2))
        loser = photo.copy()
        loser.paste(other.crop(box).transpose(Image.Transpose.FLIP_LEFT_RIGHT), box[:2])
        made = images.loc[r.loser_id].to_dict() | ws.save_image(loser, 'generated', f'{k:016x}')
        ws.append('images', pd.DataFrame([made | dict(width=photo.width, height=photo.height)]))
        rows.append(r.to_dict() | dict(
            pair_id=f'local{k:011x}',
            loser_id=made['image_id'],
            loser_path=made['path'],
            loser_sha256=made['sha256'],
            loser_bytes=(ws.root/made['path']).stat().st_size,
            stage='local',
            mask=list(mask),
        ))
    controls = pd.concat([pd.read_parquet(folder/'controls.parquet'), pd.DataFrame(rows)], ignore_index=True)
    write_controls(ws, controls)
    return ws


def write_controls(ws, controls):
    folder = ws.root/'splits'/'v1'
    controls.to_parquet(folder/'controls.parquet', index=False)
    info = json.loads((folder/'split.json').read_text())
    info['sha256']['controls.parquet'] = file_sha256(folder/'controls.parquet')
    (folder/'split.json').write_text(json.dumps(info))


@pytest.fixture(scope='module')
def local(finished, tmp_path_factory):
    from hgdpo_curate import open_workspace
    copy = shutil.copytree(finished.root, tmp_path_factory.mktemp('local')/'ws', ignore=shutil.ignore_patterns('runs'))
    return with_local_pairs(open_workspace(copy))


def trainer(ws, pairs=None, folder='one', base=None, **fields):
    "The stage `fingers` from base, on local pairs."
    from dataclasses import replace

    from hgdpo_curate import load_split
    from hgdpo_curate.pipelines import load_pipeline, model_hash
    from hgdpo_curate.train.cache import TrainingCache
    from hgdpo_curate.train.presets import load_preset
    from hgdpo_curate.train.trainer import StageTrainer
    shared = {k: fields.pop(k) for k in ('fixed_draws',) if k in fields}
    preset = load_preset('mannequin-fingers', report_to='none', **shared)
    stage = replace(preset.stage('fingers'), start='', **dict(train_batch_size=2) | fields)
    base, pairs = base or ws.base_model, load_split(ws)['local'] if pairs is None else pairs
    pipe, cache = load_pipeline(base, 'cpu'), TrainingCache(ws, model_hash(base))
    files = {h: p for w in ('winner', 'loser') for h, p in zip(pairs[f'{w}_sha256'], pairs[f'{w}_path'])}
    cache.fill(pipe, files, pairs.prompt, progress=quiet)
    return StageTrainer(
        pipe,
        cache,
        stage,
        pairs,
        ws.root/'runs'/folder/'fingers',
        preset,
        fingerprint='mark',
        progress=quiet,
    )


@pytest.mark.parametrize('more', [dict(control='local_alone'), dict(control='local_alone', fixed_draws=2)])
def test_a_stage_on_local_pairs_resumes_to_the_bit(local, more):
    from hgdpo_curate import train_curriculum
    kw, name = KW | dict(max_train_steps=9) | more, f'bits-{len(more)}'
    whole = adapters(train_curriculum(local, run=name, **kw))
    with pytest.raises(KeyboardInterrupt):
        train_curriculum(local, run=f'{name}-stopped', **kw | dict(progress=stop_after(7)))
    assert same(whole, adapters(train_curriculum(local, run=f'{name}-stopped', **kw)))
    log = pd.read_parquet(local.root/'runs'/name/'local_alone'/'metrics.parquet')
    assert log.beyond_bound.between(0, 1).all() and abs(log.loss[0] - np.log(2)) < 1e-4


def test_the_whole_recipe_and_its_controls_train(local):
    from hgdpo_curate import train_curriculum
    from hgdpo_curate.adapters import read_lora
    from hgdpo_curate.train.presets import LOCAL_CONTROLS, load_preset
    run = train_curriculum(local, run='fingers', **KW)
    told = json.loads((run/'fingers'/'done.json').read_text())
    assert (told['stage']['objective'], told['stage']['start'], told['pairs']) == ('masked_dpo', 'hard', told['pairs'])
    final, fingers, normal = (read_lora(run/s)['unet'] for s in ('final', 'fingers', 'normal'))
    late = [k for k in final if 'up_blocks' in k]
    assert late and all(torch.equal(final[k], (fingers if k in late else normal)[k]) for k in final)
    assert json.loads((run/'final'/'inference.json').read_text())['up_blocks'] == 'fingers'
    for control in LOCAL_CONTROLS:
        made = train_curriculum(local, control=control, reuse=True, **KW | dict(max_train_steps=1))
        assert (made/'final'/'pytorch_lora_weights.safetensors').exists(), control
        assert [s.name for s in load_preset('mannequin-fingers', control).stages if not (made/s.name).is_dir()] == []


def test_two_processes_train_as_one_does_in_two_passes(local):
    from hgdpo_curate import train_curriculum
    own = dict(control='local_alone', fixed_draws=2, max_train_steps=6)
    kw = {k: v for k, v in KW.items() if k != 'progress'} | own
    code = ('import sys\nfrom hgdpo_curate.train.curriculum import train_curriculum\n'
            f'train_curriculum({str(local.root)!r}, run=sys.argv[1], device="cpu", '
            f'progress=lambda total, label: lambda n: None, **{kw!r})')
    (local.root/'two.py').write_text(code)
    flags = '--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no'
    port = '--num_cpu_threads_per_process 1 --main_process_port 0'
    launch = [sys.executable, '-m', 'accelerate.commands.launch', *flags.split(), *port.split()]
    done = subprocess.run(
        [*launch, str(local.root/'two.py'), 'two-processes'],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(p) for p in sys.path if p])),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = train_curriculum(local, run='two-passes', gradient_accumulation_steps=2, progress=quiet, **kw)
    assert same(adapters(local.root/'runs'/'two-processes'), adapters(one))


def test_local_pairs_of_two_shapes(tmp_path, random_base):
    "A step has one shape, and its masks have it too."
    from conftest import Chance
    from test_buckets import mixed_folder, mixed_workspace

    from hgdpo_curate import freeze_split, generate_pool, import_photos, reconstruct, score_images, train_curriculum
    ws = mixed_workspace(tmp_path/'ws', test_share=0.)
    import_photos(ws, mixed_folder(tmp_path/'photos', 2), progress=lambda items, **k: items)
    generate_pool(ws, 2, random_base, progress=quiet)
    reconstruct(ws, progress=quiet)
    score_images(ws, Chance(), progress=quiet)
    freeze_split(ws, 'v1', 'chance', controls=True)
    read = trainer(with_local_pairs(ws)).pass_loss.read_batch
    seen = set()
    for step in range(6):
        batch = read(range(2*step, 2*step + 2))
        assert batch.mask.shape == (2, 1, *batch.noisy.shape[2:]) and batch.weights().shape[0] == 4
        assert {*batch.mask.unique().tolist()} == {1., np.float32(.1).item()}
        seen.add(tuple(batch.mask.shape[2:]))
    assert len(seen) == 3
    kw = KW | dict(control='local_alone', max_train_steps=6)
    whole = adapters(train_curriculum(ws, run='whole', **kw))
    with pytest.raises(KeyboardInterrupt): train_curriculum(ws, run='stopped', **kw | dict(progress=stop_after(5)))
    assert same(whole, adapters(train_curriculum(ws, run='stopped', **kw)))


def test_winner_and_loser_of_a_local_pair_differ_in_the_part_alone(local):
    "They share noise, timestep and the posterior's noise."
    read = trainer(local).pass_loss.read_batch
    batch = read(range(0, 2))
    winners, losers = batch.noisy.chunk(2)
    assert torch.equal(*batch.timesteps.chunk(2)) and not torch.equal(winners, losers)
    # an encoder of a few layers sees a few pixels around a cell, so the far corner is equal to the bit
    same_cells = (winners == losers).all(1)
    part = batch.mask[:, 0] == 1
    assert same_cells.any() and not (same_cells & part).all() and (~same_cells & part).sum() > part.sum()/2

    class WithDeviation:
        "A cache whose images have a posterior of deviation 1."
        def latent_shape(self, sha256): return 4, 4, 4
        def sample_latents(self, hashes, noise): return noise
    from hgdpo_curate.train.batches import BatchReader
    reader = BatchReader(WithDeviation(), read.pairs, read.stage, read.scheduler, seed=0, total=10)
    assert torch.equal(*reader(range(0, 2)).noisy.chunk(2))


def test_the_gradient_outside_the_mask_is_what_outside_weight_says(local):
    grads = {}
    for outside in (1., .1, 0.):
        loss = trainer(local, outside_weight=outside, margin_bound=0.).pass_loss
        real, seen = loss.model.predict, []
        def keeping(noisy, timesteps, conditioning, real=real, seen=seen):
            pred = real(noisy, timesteps, conditioning)
            if pred.requires_grad:
                pred.retain_grad()
                seen.append(pred)
            return pred
        loss.model.predict = keeping
        batch = loss.read_batch(range(0, 2))
        loss(range(0, 2)).loss.backward()
        inside = (batch.mask == 1).expand_as(seen[0].grad[:2]) if outside < 1 else None
        grads[outside] = seen[0].grad, inside, batch.mask
        loss.model.close()
    plain, inside, cells = grads[1.][0][:2], grads[.1][1], grads[.1][2][0].numel()
    for outside in (.1, 0.):
        # at the start the margin is 0, so only the weights and their sum differ
        per_pair = (inside[:, :1].float() + outside*(~inside[:, :1]).float()).sum((1, 2, 3), keepdim=True)
        want = plain*torch.where(inside, 1., outside)*cells/per_pair
        assert torch.allclose(grads[outside][0][:2], want, rtol=1e-4, atol=1e-10)
    assert (grads[0.][0][:2][~inside] == 0).all() and (plain[~inside] != 0).any()


def test_there_is_no_gradient_beyond_the_bound(local):
    run = trainer(local, margin_bound=1e-6, learning_rate=1e-2, max_train_steps=30)
    steps = [run.train_step() for _ in range(12)]
    run.close()
    # the first margins are 0, below the bound; soon both pairs of a step are beyond it
    assert steps[0].beyond_bound == 0 < steps[0].grad_norm
    assert {s.grad_norm for s in steps if s.beyond_bound == 1} == {0.}
    assert all(s.grad_norm > 0 for s in steps if s.beyond_bound < 1)


def test_the_loss_falls_on_drawn_people(local):
    run = trainer(local, base='mannequin', folder='falls', train_batch_size=6, max_train_steps=12)
    losses = [run.train_step().loss for _ in range(12)]
    run.close()
    assert abs(losses[0] - np.log(2)) < 1e-4 and np.mean(losses[-4:]) < .45


def test_cached_errors_of_a_pair_whose_mask_changed_are_not_read(local):
    from hgdpo_curate import load_split
    run = trainer(local, fixed_draws=1, folder='cached')
    n = len(run.pairs)
    for _ in range(n): run.train_step()
    assert run.pass_loss.read_batch.reference_cache.known(np.arange(n), np.zeros(n, int)).all()
    run.save_checkpoint()
    pairs = load_split(local)['local']
    pairs.at[1, 'mask'] = [.1, .1, .3, .3]
    again = trainer(local, pairs, fixed_draws=1, folder='cached')
    assert again.resume() == n
    known = again.pass_loss.read_batch.reference_cache.known(np.arange(n), np.zeros(n, int))
    assert known.tolist() == [k != 1 for k in range(n)]


def test_a_run_whose_masks_changed_is_another_run(local, copy_of):
    from hgdpo_curate import load_split, train_curriculum
    from hgdpo_curate.train.curriculum import content_of
    from hgdpo_curate.train.presets import load_preset
    pairs, preset = load_split(local)['local'], load_preset('mannequin-fingers')
    moved = pairs.assign(mask=[[.1, .1, .3, .3]]*len(pairs))
    masked, plain = preset.stage('fingers'), load_preset('mannequin-fingers', 'fingers_unmasked').stage('fingers')
    assert content_of(pairs, masked) != content_of(moved, masked)
    assert content_of(pairs, plain) == content_of(moved, plain)
    kw = KW | dict(control='local_alone', max_train_steps=2)
    ws = copy_of(local)
    train_curriculum(ws, run='first', **kw)
    controls = pd.read_parquet(ws.root/'splits'/'v1'/'controls.parquet')
    controls['mask'] = [[.1, .1, .3, .3] if s == 'local' else None for s in controls.stage]
    write_controls(ws, controls)
    with pytest.raises(UserError, match='another split'): train_curriculum(ws, run='first', **kw)


def test_earlier_recipes_keep_their_fingerprints():
    "Computed by the code before there were masks."
    from hgdpo_curate.train.curriculum import fingerprint_of, recipe_of
    from hgdpo_curate.train.presets import load_preset
    for (preset, control, stage), mark in {
        ('mannequin', '', 'easy'): '5703b7ce8c5f32e1',
        ('mannequin', '', 'hard'): 'f4c03c1d709128ba',
        ('mannequin', 'sdpo', 'sdpo'): 'a392a4e7647cf75b',
        ('sd15-24gb', '', 'normal'): '29379edb721f91c7',
    }.items():
        recipe = recipe_of(load_preset(preset, control))
        assert fingerprint_of(recipe, stage, 'content', 'model', None) == mark, (preset, control)
    masked = recipe_of(load_preset('mannequin-fingers'))['stages'][3]
    assert (masked['outside_weight'], masked['margin_bound']) == (.1, 2.)


def test_what_cannot_be_trained_on_is_refused(local):
    from hgdpo_curate import load_split, train_curriculum
    from hgdpo_curate.train.batches import check_pairs
    from hgdpo_curate.train.presets import load_preset
    from hgdpo_curate.train.recipes import Stage
    pairs, stage = load_split(local)['local'], load_preset('mannequin-fingers').stage('fingers')
    for words, bad in {
        'has no mask': pairs.drop(columns='mask'),
        'local00000000000 of fingers has no mask': pairs.assign(mask=[None, *pairs['mask'][1:]]),
        'of the pair local00000000000 is empty': pairs.assign(mask=[[.2, .2, .2, .9], *pairs['mask'][1:]]),
        'covers more than': pairs.assign(mask=[[0., 0., 1., 1.]]*len(pairs)),
        'equals its winner.*hgdpo redraw': pairs.assign(loser_sha256=pairs.winner_sha256),
        'has no pairs': pairs[:0],
    }.items():
        with pytest.raises(UserError, match=words): check_pairs(bad, stage)
    for fields in (dict(pairs='easy'), dict(pairs='local+hard'), dict(order='by_gap'), {}):
        how = dict(objective='masked_dpo', pairs='local') | fields
        if not fields: Stage('x', **how)
        else:
            with pytest.raises(UsageError, match='set local alone'): Stage('x', **how)
    for name, value in dict(outside_weight=1.1, margin_bound=-1.).items():
        with pytest.raises(UsageError, match=name): Stage('x', **{name: value})
    with pytest.raises(UsageError, match='no stage fingers.*mannequin-fingers or sd15-24gb-fingers'):
        train_curriculum(local, control='realalign', **KW | dict(preset='mannequin'))


def test_a_split_without_local_pairs_is_named(finished):
    from hgdpo_curate import train_curriculum
    with pytest.raises(UserError, match="without the pairs 'local'.*hgdpo redraw.*hgdpo pairs --split NEW_NAME"):
        train_curriculum(finished, run='none', **KW)
