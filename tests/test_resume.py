"""A run that was stopped or killed goes on to the same weights."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import quiet
from short_runs import adapters, KW, same, stop_after

STAGES = ('easy', 'normal', 'hard', 'text_encoder')


@pytest.fixture(scope='module')
def finished(finished, tmp_path_factory):
    "A copy for this file: its runs are nobody else's business."
    import shutil

    from hgdpo_curate import open_workspace
    return open_workspace(shutil.copytree(finished.root, tmp_path_factory.mktemp('trained')/'ws'))


@pytest.fixture(scope='module')
def uninterrupted(finished):
    from hgdpo_curate import train_curriculum
    whole = adapters(train_curriculum(finished, run='whole', progress=quiet, **KW))
    assert {k.partition('.')[0] for k in whole} == {*STAGES, 'final'}
    return whole


@pytest.mark.parametrize('stop', [3, 8, 23])
def test_an_interrupted_run_resumes_to_the_same_weights(finished, uninterrupted, stop):
    from hgdpo_curate import train_curriculum
    with pytest.raises(KeyboardInterrupt):
        train_curriculum(finished, run=f'stopped{stop}', progress=stop_after(stop), **KW)
    assert same(adapters(train_curriculum(finished, run=f'stopped{stop}', progress=quiet, **KW)), uninterrupted)


def train_and_die(root, stage, step, threads):
    "In a process of its own: train, and be killed right after a step."
    torch.set_num_threads(threads)
    from hgdpo_curate import train_curriculum
    from hgdpo_curate.train.trainer import StageTrainer
    real = StageTrainer.train_step

    def dying(run):
        figures = real(run)
        if (run.stage.name, run.step) == (stage, step): os.kill(os.getpid(), signal.SIGKILL)
        return figures
    StageTrainer.train_step = dying
    train_curriculum(root, run='killed', progress=quiet, **KW)


def test_a_run_killed_at_two_random_steps_of_each_stage_resumes_to_the_same_weights(finished, uninterrupted):
    """kill -9 from inside, at steps drawn once for all; what was not in a checkpoint yet is trained again.

    The processes share one import of the libraries.
    """
    import multiprocessing

    import pandas as pd

    from hgdpo_curate import train_curriculum
    rng, fresh = np.random.default_rng(20261124), multiprocessing.get_context('forkserver')
    fresh.set_forkserver_preload(
        [
            'hgdpo_curate.train.curriculum',
            'peft',
            'diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion',
            'diffusers.optimization',
        ]
    )
    for stage in STAGES:
        for step in sorted(rng.choice(np.arange(1, 7), 2, replace=False)):
            process = fresh.Process(
                target=train_and_die, args=(str(finished.root), stage, int(step), torch.get_num_threads())
            )
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL, (stage, step, process.exitcode)
    assert same(adapters(train_curriculum(finished, run='killed', progress=quiet, **KW)), uninterrupted)
    # no step twice, none missing
    assert [*pd.read_parquet(finished.root/'runs'/'killed'/'easy'/'metrics.parquet').step] == [1, 2, 3, 4, 5, 6]


def test_a_kill_from_outside_at_any_moment_leaves_a_run_that_goes_on(finished, uninterrupted):
    from hgdpo_curate import train_curriculum
    code = (f'import torch; torch.set_num_threads({torch.get_num_threads()})\nfrom hgdpo_curate import '
            f'train_curriculum\ntrain_curriculum({str(finished.root)!r}, run="shot", **{KW!r})')
    process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    until = time.time() + 180
    while (
        not list((finished.root / 'runs' / 'shot').glob('*/checkpoints/step-*.pt'))
        and time.time() < until
        and process.poll() is None
    ):
        time.sleep(.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, 'the run ended before it could be killed'
    assert same(adapters(train_curriculum(finished, run='shot', progress=quiet, **KW)), uninterrupted)


def test_resume_with_fixed_draws_and_a_best_adapter_is_exact_too(finished):
    "The reference's stored word and the best adapter so far are part of a checkpoint."
    from conftest import Chance

    from hgdpo_curate import train_curriculum
    kw = KW | dict(
        preset='mannequin',
        control='easy_only',
        fixed_draws=2,
        validation_steps=2,
        keep_best='chance',
        scorer=Chance(),
        max_train_steps=9,
        **{'inference.steps': 2},
    )
    runs = [train_curriculum(finished, run='best', progress=quiet, **kw)]
    with pytest.raises(KeyboardInterrupt): train_curriculum(finished, run='best-stopped', progress=stop_after(7), **kw)
    runs.append(train_curriculum(finished, run='best-stopped', progress=quiet, **kw))
    from hgdpo_curate.adapters import read_lora
    a, b = (read_lora(r/'easy')['unet'] for r in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)
    told = [json.loads((r/'easy'/'done.json').read_text()) for r in runs]
    assert told[0]['best'] == told[1]['best'] and told[0]['best']['step'] in (2, 4, 6, 8, 9)


def test_resume_refuses_another_configuration_and_a_changed_split(finished, copy_of, uninterrupted):
    from hgdpo_curate import UserError, train_curriculum
    with pytest.raises(UserError, match='--run'):
        train_curriculum(finished, run='whole', progress=quiet, **KW | dict(beta_dpo=9.))
    ws = copy_of(finished)
    file = ws.root/'splits'/'v1'/'easy.parquet'
    file.write_bytes(file.read_bytes()[:-1] + b'x')
    with pytest.raises(UserError, match='changed since'): train_curriculum(ws, run='again', progress=quiet, **KW)


def stage_run(ws, stage, start=None, **kw):
    from hgdpo_curate.curate.splits import load_split
    from hgdpo_curate.pipelines import load_pipeline, model_hash
    from hgdpo_curate.train.cache import TrainingCache
    from hgdpo_curate.train.presets import load_preset
    from hgdpo_curate.train.trainer import StageTrainer
    base = ws.base_model
    pipe, cache, preset, data = (
        load_pipeline(base, 'cpu'),
        TrainingCache(ws, model_hash(base)),
        load_preset(
            'mannequin',
            train_batch_size=2,
            learning_rate=1e-2,
            report_to='none',
            **kw,
        ),
        load_split(ws),
    )
    files = {h: p for w in ('winner', 'loser') for h, p in zip(data['easy'][f'{w}_sha256'], data['easy'][f'{w}_path'])}
    cache.fill(pipe, files, data['easy'].prompt, progress=quiet)
    return StageTrainer(
        pipe,
        cache,
        preset.stage(stage),
        data['easy'],
        ws.root / 'runs' / 'one' / stage,
        preset,
        start,
        'mark',
        progress=quiet,
    )


def test_the_reference_never_moves_also_after_resume(finished, copy_of):
    from hgdpo_curate.adapters import adapter_state
    from hgdpo_curate.train.batches import step_indices
    ws = copy_of(finished)
    easy = stage_run(ws, 'easy')
    for _ in range(2): easy.train_step()
    start = dict(unet=adapter_state(easy.pipe.unet))
    run = stage_run(ws, 'normal', start)
    loss = run.pass_loss(step_indices(0, 2)).loss
    trained = sum(p.numel() for p in run.pipe.unet.parameters() if p.requires_grad)
    assert abs(loss.item() - .6931) < 1e-3                        # it starts as its own reference
    for _ in range(3): run.train_step()
    run.save_checkpoint()
    again = stage_run(ws, 'normal', start)
    assert again.resume() == 3
    again.train_step()
    run.train_step()
    for r in (run, again):
        assert all(torch.equal(v, start['unet'][k]) for k, v in adapter_state(r.pipe.unet, 'reference').items())
        assert any((v != start['unet'][k]).any() for k, v in adapter_state(r.pipe.unet).items())
        assert (
            sum(p.numel() for p in r.pipe.unet.parameters() if p.requires_grad)
            == trained
            == sum(v.numel() for v in start['unet'].values())
        )
    assert all(
        torch.equal(a, b)
        for a, b in zip(adapter_state(run.pipe.unet).values(), adapter_state(again.pipe.unet).values())
    )
    base, plain = (
        torch.cat([p.flatten() for n, p in r.pipe.unet.named_parameters() if '.lora_' not in n]) for r in (easy, run)
    )
    assert torch.equal(base, plain)                               # and base itself lies still


def test_a_full_disk_and_a_second_ctrl_c_leave_the_last_checkpoint_intact(finished, copy_of, monkeypatch):
    import errno

    from hgdpo_curate import UserError
    ws = copy_of(finished)
    run = stage_run(ws, 'easy', checkpoints_total_limit=1)
    for _ in range(2): run.train_step()
    run.save_checkpoint()
    kept = {p: p.read_bytes() for p in (run.folder/'checkpoints').iterdir()}
    run.train_step()

    def half_written(error):
        def save(what, file):
            open(file, 'wb').write(b'half')
            raise error
        return save
    for error, seen in (
        (OSError(errno.ENOSPC, 'No space left on device'), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        monkeypatch.setattr(torch, 'save', half_written(error))
        with pytest.raises(seen, match='disk is full' if seen is UserError else None): run.save_checkpoint()
        monkeypatch.undo()
        assert {p: p.read_bytes() for p in (run.folder/'checkpoints').iterdir()} == kept
    assert stage_run(ws, 'easy').resume() == 2


def test_only_the_newest_checkpoints_are_kept(finished, copy_of):
    run = stage_run(copy_of(finished), 'easy', checkpoints_total_limit=2)
    for _ in range(4):
        run.train_step()
        run.save_checkpoint()
    assert sorted(p.name for p in (run.folder/'checkpoints').iterdir()) == ['step-0000003.pt', 'step-0000004.pt']
