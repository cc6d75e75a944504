"""What the trainer promises beyond one process and one kind of model."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import quiet

KW = dict(
    preset='mannequin',
    train_batch_size=2,
    max_train_steps=2,
    checkpointing_steps=50,
    report_to='none',
)


@pytest.fixture(scope='module')
def finished(finished, tmp_path_factory):
    "A copy for this file: its runs are nobody else's business."
    from hgdpo_curate import open_workspace
    return open_workspace(shutil.copytree(finished.root, tmp_path_factory.mktemp('trained')/'ws'))


def of_stage(run, stage, part='unet'):
    from hgdpo_curate.adapters import read_lora
    return torch.cat([v.flatten() for k, v in sorted(read_lora(run/stage)[part].items())])


def test_two_processes_reach_the_weights_of_one(finished):
    """The same four pairs a step.

    By one process in two passes, by one in one pass, and by two processes under `accelerate launch` (whose --cpu would
    start one only; --multi_gpu starts two, and device='cpu' keeps them there).
    """
    from hgdpo_curate import train_curriculum
    # the paper's
    kw = dict(
        preset='mannequin',
        control='easy_only',
        max_train_steps=20,
        learning_rate=1e-5,
        beta_dpo=2500.0,
        report_to='none',
    )
    code = ('import sys\nfrom hgdpo_curate.train.curriculum import '
            f'train_curriculum\ntrain_curriculum({str(finished.root)!r}, run=sys.argv[1], device="cpu", '
            f'train_batch_size=2, progress=lambda total, label: lambda n: None, **{kw!r})')
    script = finished.root/'two.py'
    script.write_text(code)
    launch = [
        sys.executable,
        '-m',
        'accelerate.commands.launch',
        '--multi_gpu',
        '--num_processes',
        '2',
        '--num_machines',
        '1',
        '--mixed_precision',
        'no',
        '--dynamo_backend',
        'no',
        '--num_cpu_threads_per_process',
        '1',
        '--main_process_port',
        '0',
        str(script),
        'two-processes',
    ]
    done = subprocess.run(
        launch,
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(p) for p in sys.path if p])),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((finished.root/'runs'/'two-processes'/'easy'/'done.json').read_text())['pairs_per_step'] == 4
    two = of_stage(finished.root/'runs'/'two-processes', 'easy')
    passes = of_stage(
        train_curriculum(
            finished,
            run='two-passes',
            train_batch_size=2,
            gradient_accumulation_steps=2,
            progress=quiet,
            **kw,
        ),
        'easy',
    )
    one = of_stage(
        train_curriculum(
            finished,
            run='one-pass',
            train_batch_size=4,
            progress=quiet,
            **kw,
        ),
        'easy',
    )
    print(
        'two processes against two passes:',
        (two - passes).abs().max().item(),
        ' against one pass:',
        (two - one).abs().max().item(),
        ' moved:',
        two.abs().max().item(),
    )
    assert torch.equal(two, passes)                                 # the same passes, so the same sums
    # Adam makes a whole step, 1e-5, of a gradient that is nothing but rounding, and processors round differently
    off = (two - one).abs()
    assert (off < 1e-5).double().mean() > .999 and off.max() < 5e-5 and two.norm() > 0
    assert (
        json.loads((finished.root / 'runs' / 'two-processes' / 'easy' / 'done.json').read_text())['fingerprint']
        == json.loads((finished.root / 'runs' / 'one-pass' / 'easy' / 'done.json').read_text())['fingerprint']
    )


def test_every_control_trains(finished):
    from hgdpo_curate import train_curriculum
    from hgdpo_curate.train.presets import CONTROLS, load_preset, LOCAL_CONTROLS
    for control in [c for c in CONTROLS if c not in LOCAL_CONTROLS]:      # for those see test_masked.py
        run = train_curriculum(finished, control=control, progress=quiet, **KW | dict(max_train_steps=1))
        for stage in load_preset('mannequin', control).stages:
            assert (run/stage.name/'metrics.parquet').exists(), control
        assert (run/'final'/'pytorch_lora_weights.safetensors').exists() and (run/'final'/'inference.json').exists()


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_trains_a_float32_adapter(finished, precision):
    import pandas as pd

    from hgdpo_curate import train_curriculum
    run = train_curriculum(
        finished,
        run=precision,
        mixed_precision=precision,
        progress=quiet,
        **KW | dict(max_train_steps=3, learning_rate=1e-2),
    )
    log = pd.read_parquet(run/'easy'/'metrics.parquet')
    assert abs(log.loss[0] - np.log(2)) < 1e-2 and np.isfinite(log.loss).all() and (log.grad_norm > 0).all()
    assert (
        of_stage(run, 'hard').dtype == torch.float32 and of_stage(run, 'text_encoder', 'text_encoder').abs().max() > 0
    )


@pytest.mark.skipif(
    not any(map(shutil.which, ('cc', 'gcc', 'clang'))), reason='no C compiler here, which torch.compile needs on a CPU'
)
def test_a_compiled_unet_trains_to_the_same_weights(finished):
    from hgdpo_curate import train_curriculum
    kw = KW | dict(control='easy_only', max_train_steps=2)
    plain, compiled = (
        of_stage(
            train_curriculum(
                finished,
                run=f'compile-{c}',
                compile=c,
                progress=quiet,
                **kw,
            ),
            'easy',
        )
        for c in (False, True)
    )
    assert (plain - compiled).norm() < 1e-2*plain.norm() and not torch.equal(plain, torch.zeros_like(plain))


def test_a_batch_larger_than_the_data_is_said(finished):
    from hgdpo_curate import train_curriculum
    with pytest.warns(UserWarning, match='some pairs occur more than once'):
        train_curriculum(
            finished,
            run='large',
            control='easy_only',
            progress=quiet,
            **KW | dict(train_batch_size=64, max_train_steps=1),
        )


def test_a_stage_without_pairs_and_a_split_without_controls_are_refused(finished, copy_of):
    import pandas as pd

    from hgdpo_curate import UserError, train_curriculum
    from hgdpo_curate.files import file_sha256
    ws = copy_of(finished)
    folder = ws.root/'splits'/'v1'
    info = json.loads((folder/'split.json').read_text())
    pd.read_parquet(folder/'normal.parquet')[:0].to_parquet(folder/'normal.parquet')
    info['sha256']['normal.parquet'] = file_sha256(folder/'normal.parquet')
    info['sha256'].pop('controls.parquet')
    (folder/'split.json').write_text(json.dumps(info))
    with pytest.raises(UserError, match='stage normal has no pairs'):
        train_curriculum(ws, run='empty', progress=quiet, **KW)
    with pytest.raises(UserError, match="without the pairs 'naive'"):
        train_curriculum(
            ws,
            run='old-split',
            control='naive',
            progress=quiet,
            **KW,
        )


def test_a_loss_that_is_not_finite_names_step_pair_and_checkpoint(finished, copy_of, monkeypatch):
    import dataclasses

    from hgdpo_curate import UserError, train_curriculum
    from hgdpo_curate.train import losses
    ws, seen = copy_of(finished), []

    def breaking(w, l, rw, rl, beta):
        seen.append(1)
        out = losses.diffusion_dpo_loss(
            w,
            l,
            rw,
            rl,
            beta,
        )
        return out*float('nan') if len(seen) == 4 else out
    monkeypatch.setitem(losses.OBJECTIVES, 'dpo', dataclasses.replace(losses.OBJECTIVES['dpo'], loss=breaking))
    with pytest.raises(UserError, match=r'not finite at step 3 \(first bad pair [0-9a-f]{16}\).*checkpoints'):
        train_curriculum(ws, run='nan', progress=quiet, **KW | dict(max_train_steps=6, checkpointing_steps=2))
    assert [p.name for p in (ws.root/'runs'/'nan'/'easy'/'checkpoints').iterdir()] == ['step-0000002.pt']
    monkeypatch.undo()
    run = train_curriculum(ws, run='nan', progress=quiet, **KW | dict(max_train_steps=6, checkpointing_steps=2))
    assert torch.isfinite(of_stage(run, 'easy')).all()


def test_eight_bit_adam_trains_where_bitsandbytes_is_installed(finished):
    pytest.importorskip('bitsandbytes', reason='bitsandbytes is not installed')
    from hgdpo_curate import train_curriculum
    run = train_curriculum(
        finished,
        run='8bit',
        control='easy_only',
        optimizer='adamw8bit',
        progress=quiet,
        **KW,
    )
    assert of_stage(run, 'easy').abs().max() > 0


def test_a_face_in_a_picture_becomes_an_embedding(tmp_path):
    """insightface's own loading code on a made-up pack.

    A detector that finds bright blocks and a recogniser that averages them.
    """
    from onnx import TensorProto as T
    from onnx import helper as h
    from onnx import numpy_helper as nh
    from onnx import save
    from PIL import Image
    from test_detectors import tiny_scrfd

    from hgdpo_curate import UserError, face_embedding
    folder = tmp_path/'models'/'tiny'
    folder.mkdir(parents=True)
    tiny_scrfd(folder/'det_tiny.onnx')
    weights = np.random.default_rng(0).normal(size=(3*112*112, 512)).astype('f4')*1e-3
    nodes = [h.make_node('Flatten', ['data'], ['flat']), h.make_node('MatMul', ['flat', 'w'], ['out'])]
    graph = h.make_graph(
        nodes,
        'g',
        [h.make_tensor_value_info('data', T.FLOAT, ['n', 3, 112, 112])],
        [h.make_tensor_value_info('out', T.FLOAT, ['n', 512])],
        [nh.from_array(weights, 'w')],
    )
    picture = Image.new('RGB', (256, 256))
    picture.paste('white', (64, 96, 96, 128))
    picture.save(tmp_path/'me.png')
    with pytest.raises(UserError, match='recogniser'): face_embedding(tmp_path/'me.png', folder, True, 256)
    save(h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8), str(folder/'w600k_tiny.onnx'))
    found = face_embedding(tmp_path/'me.png', folder, True, 256)
    assert found.shape == (512,) and abs(found.norm().item() - 1) < 1e-5
    Image.new('RGB', (256, 256)).save(tmp_path/'nobody.png')
    for source, match in ((tmp_path/'nobody.png', 'No face'), (tmp_path/'gone.png', 'not there')):
        with pytest.raises(UserError, match=match): face_embedding(source, folder, True, 256)
    with pytest.raises(UserError, match='non-commercial'): face_embedding(tmp_path/'me.png', folder)
