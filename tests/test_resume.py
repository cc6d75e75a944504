"""A run that was stopped or killed goes on to the same weights."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import quiet

KW = dict(preset='mannequin', train_batch_size=2, max_train_steps=6, checkpointing_steps=2)


def adapters(run):
    from hgdpo_curate.models import read_lora
    return {f'{s}.{part}.{k}': v for s in ('easy', 'normal', 'hard', 'text_encoder', 'final') for part, d in read_lora(run/s).items() for k, v in d.items()}


@pytest.fixture(scope='module')
def uninterrupted(finished):
    from hgdpo_curate import train_curriculum
    return adapters(train_curriculum(finished, run='whole', progress=quiet, **KW))


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('stop', [1, 3, 8, 15, 23])
def test_an_interrupted_run_resumes_to_the_same_weights(finished, uninterrupted, stop):
    from hgdpo_curate import train_curriculum
    count = 0

    def stopping(total, label):
        def update(n):
            nonlocal count
            count += n if label.startswith('training') else 0
            if count >= stop: raise KeyboardInterrupt
        return update
    with pytest.raises(KeyboardInterrupt): train_curriculum(finished, run=f'stopped{stop}', progress=stopping, **KW)
    assert same(adapters(train_curriculum(finished, run=f'stopped{stop}', progress=quiet, **KW)), uninterrupted)


def test_a_killed_run_resumes_to_the_same_weights(finished, uninterrupted):
    from hgdpo_curate import train_curriculum
    code = f'import torch; torch.set_num_threads({torch.get_num_threads()})\nfrom hgdpo_curate import train_curriculum\ntrain_curriculum({str(finished.root)!r}, run="killed", **{KW!r})'
    process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    until = time.time() + 180
    while not list((finished.root/'runs'/'killed').glob('*/checkpoints/step-*.pt')) and time.time() < until and process.poll() is None: time.sleep(.02)
    os.kill(process.pid, signal.SIGKILL); process.wait()
    assert process.returncode == -signal.SIGKILL, 'the run ended before it could be killed'
    assert same(adapters(train_curriculum(finished, run='killed', progress=quiet, **KW)), uninterrupted)


def test_resume_refuses_another_configuration_and_a_changed_split(finished, copy_of, uninterrupted):
    from hgdpo_curate import UserError, train_curriculum
    with pytest.raises(UserError, match='--run'): train_curriculum(finished, run='whole', progress=quiet, **KW | dict(beta_dpo=9.))
    ws = copy_of(finished)
    file = ws.root/'splits'/'v1'/'easy.parquet'
    file.write_bytes(file.read_bytes()[:-1] + b'x')
    with pytest.raises(UserError, match='not what was frozen'): train_curriculum(ws, run='again', progress=quiet, **KW)


def test_the_reference_never_moves(finished):
    from hgdpo_curate.curate.pairs import load_split
    from hgdpo_curate.models import adapter_state, load_pipeline, model_hash
    from hgdpo_curate.train.cache import TrainingCache
    from hgdpo_curate.train.curriculum import StageRun
    from hgdpo_curate.train.stages import load_preset
    base = finished.config['base_model']
    pipe, cache, preset, data = load_pipeline(base, 'cpu'), TrainingCache(finished, model_hash(base)), load_preset('mannequin', train_batch_size=2, learning_rate=1e-2), load_split(finished)
    files = {h: p for w in ('winner', 'loser') for h, p in zip(data['easy'][f'{w}_sha256'], data['easy'][f'{w}_path'])}
    cache.fill(pipe, files, data['easy'].prompt, progress=quiet)
    easy = StageRun(pipe, cache, preset.stage('easy'), data['easy'], finished.root/'x', preset)
    for _ in range(2): easy.train_step()
    start = adapter_state(pipe.unet)
    pipe.unet.unload_lora()
    run = StageRun(pipe, cache, preset.stage('normal'), data['easy'], finished.root/'x', preset, start)
    first, trained = run.loss(0), sum(p.numel() for p in pipe.unet.parameters() if p.requires_grad)
    assert abs(first[0].item() - .6931) < 1e-3                    # it starts as its own reference
    for _ in range(3): run.train_step()
    assert all(torch.equal(v, start[k]) for k, v in adapter_state(pipe.unet, 'reference').items())
    assert any((v != start[k]).any() for k, v in adapter_state(pipe.unet).items())
    assert sum(p.numel() for p in pipe.unet.parameters() if p.requires_grad) == trained == sum(v.numel() for v in start.values())
