"""What bad input gets.

One sentence that names the file or value and says what to do, the right exit code, and a workspace left as it was.
"""
import errno
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import Chance, plain, quiet

from hgdpo_curate import UserError, create_workspace, import_photos
from hgdpo_curate.cli import main
from hgdpo_curate.toy.drawings import export_photos


@pytest.fixture
def photos(tmp_path): return export_photos(tmp_path/'photos', 4, seed=8)


@pytest.fixture
def empty(tmp_path): return create_workspace(tmp_path/'ws', resolution='40x56')


def said(capsys, code, *words):
    err = capsys.readouterr().err.strip()
    last = err.splitlines()[-1]                      # a progress bar may stand before it
    assert 'Traceback' not in err and last.startswith('hgdpo') and all(w in last for w in words), err
    return code


def rewrite(folder, change):
    rows = [json.loads(x) for x in (folder/'metadata.jsonl').read_text().splitlines()]
    change(rows)
    (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))


def importing(ws, folder, *flags): return main(['photos', '--workspace', str(ws.root), '--folder', str(folder), *flags])
def untouched(ws): return not len(ws.table('images')) and not len(ws.table('prompts'))


@pytest.mark.parametrize('spoil, word', [
    (lambda f: (f/'00002.png').write_bytes(b'no image'), '00002.png'),
    (lambda f: (f/'00002.png').write_bytes((f/'00002.png').read_bytes()[:200]), '00002.png'),
    (lambda f: (f/'00002.png').unlink(), '00002.png does not exist'),
    (lambda f: rewrite(f, lambda r: r[1].update(text=' ')), '00001.png has no caption'),
    (lambda f: rewrite(f, lambda r: r[1].update(consent='maybe')), 'maybe'),
    (lambda f: rewrite(f, lambda r: r[1].update(minors='perhaps')), 'perhaps'),
    (lambda f: rewrite(f, lambda r: r[1].update(person_box=[1, 2])), 'person box'),
    (lambda f: rewrite(f, lambda r: r[1].update(file_name=None)), 'names no file'),
    (lambda f: rewrite(f, lambda r: r.append(r[0])), 'twice'),
    (lambda f: (f/'metadata.jsonl').write_text('{broken'), 'line 1'),
    (lambda f: [p.unlink() for p in f.iterdir()], 'contains no photos')])
def test_a_bad_photo_folder_is_refused_and_the_workspace_unharmed(empty, photos, capsys, spoil, word):
    spoil(photos)
    assert said(capsys, importing(empty, photos), word) == 1
    assert untouched(empty) and not list((empty.root/'images').rglob('*.png'))


def test_a_photo_without_its_text_file_and_photos_that_nobody_names_are_told(empty, photos, capsys):
    extra = photos/'extra.png'
    extra.write_bytes((photos/'00000.png').read_bytes())
    assert importing(empty, photos) == 0 and 'not named in the metadata' in capsys.readouterr().out
    (photos/'metadata.jsonl').unlink()
    fresh = create_workspace(empty.root.parent/'fresh', resolution='40x56')
    for n in (0, 1, 3): (photos/f'0000{n}.txt').write_text('a person')
    extra.with_suffix('.txt').write_text('a person')
    assert said(capsys, importing(fresh, photos), '00002.png has no caption', '00002.txt') == 1 and untouched(fresh)


def test_a_base_that_knows_drawings_only_says_so_of_photographs_in_one_sentence(tmp_path, photos):
    import warnings
    ws = create_workspace(tmp_path/'ws', base_model='mannequin', resolution='40x56', steps=1)
    rewrite(photos, lambda r: [x.update(source='my camera') for x in r])
    assert importing(ws, photos) == 0
    with pytest.warns(UserWarning, match='only generates drawn people') as seen:
        assert main(['pool', '--workspace', str(ws.root), '--n', '2', '--limit', '1']) == 0
    w = next(w for w in seen if 'drawn people' in str(w.message))
    assert warnings.formatwarning(w.message, w.category, w.filename, w.lineno) == f'hgdpo: {w.message}\n'
    assert 'elsewhere.py:3' in warnings.formatwarning('x', UserWarning, '/some/elsewhere.py', 3)


def test_what_was_stated_once_is_not_forgotten_and_other_captions_are_told(empty, photos, capsys):
    rewrite(photos, lambda r: [x.pop('consent') for x in r])
    assert importing(empty, photos, '--consent', 'withdrawn') == 0
    rewrite(photos, lambda r: r[0].update(text='another caption'))
    assert importing(empty, photos) == 0 and 'under another caption' in capsys.readouterr().out
    assert set(empty.table('photo_facts').consent) == {'withdrawn'}
    assert said(capsys, importing(empty, photos, '--consent', 'perhaps'), 'perhaps') == 1


def test_an_interrupted_import_keeps_what_was_read(empty, photos, monkeypatch):
    def some(items, **k):
        yield from items[:2]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): import_photos(empty, photos, progress=some)
    assert len(empty.table('images')) == 2
    assert import_photos(empty, photos, progress=plain).already == 2 and len(empty.table('images')) == 4


def test_broken_photos_can_be_left_out(empty, photos, capsys):
    (photos/'00002.png').write_bytes(b'no image')
    assert importing(empty, photos, '--skip-bad') == 0
    assert '1 refused' in capsys.readouterr().out and len(empty.table('images')) == 3


def test_another_base_model_is_refused(finished, copy_of, random_base, tmp_path, capsys):
    ws = copy_of(finished)
    other = shutil.copytree(random_base, tmp_path/'other')
    code = main(['pool', '--workspace', str(ws.root), '--pretrained-model-name-or-path', str(other), '--n', '3'])
    assert said(capsys, code, 'new workspace') == 1


def test_a_base_whose_weights_were_exchanged_is_refused(finished, copy_of, random_base, tmp_path, capsys):
    from hgdpo_curate.toy import networks
    from hgdpo_curate.toy.drawings import draw_person
    ws = copy_of(finished)
    other = networks.save_pipeline(
        networks.tiny_pipeline([draw_person(i).prompt for i in range(20)], (40, 56), seed=1),
        tmp_path / 'other',
        half=False,
    )
    code = main(
        ['train', '--workspace', str(ws.root), '--preset', 'mannequin', '--pretrained_model_name_or_path', str(other)]
    )
    assert said(capsys, code, 'other weights') == 1


def test_a_run_goes_on_after_its_workspace_was_moved_or_called_by_another_path(
    finished, copy_of, tmp_path, monkeypatch
):
    from hgdpo_curate import train_curriculum
    ws = copy_of(finished, 'before')
    few = dict(
        preset='mannequin',
        max_train_steps=1,
        train_batch_size=2,
        progress=quiet,
    )
    run = train_curriculum(ws, **few)
    monkeypatch.chdir(ws.root.parent)
    assert train_curriculum('before', **few).resolve() == run.resolve()
    moved = shutil.move(ws.root, tmp_path/'after')
    assert train_curriculum(moved, **few).name == 'mannequin'


def test_a_pipeline_of_another_family_is_refused(empty, photos, random_base, tmp_path, capsys):
    import_photos(empty, photos, progress=plain)
    other = shutil.copytree(random_base, tmp_path/'other')
    index = json.loads((other/'model_index.json').read_text())
    (other/'model_index.json').write_text(json.dumps(index | dict(_class_name='FluxPipeline')))
    code = main(['pool', '--workspace', str(empty.root), '--pretrained_model_name_or_path', str(other)])
    assert said(capsys, code, 'FluxPipeline', 'Stable Diffusion 1.x') == 1


def test_a_split_whose_images_changed_is_refused(finished, copy_of, capsys):
    from hgdpo_curate import load_split
    ws = copy_of(finished)
    path = ws.root/load_split(ws)['easy'].winner_path[0]
    path.write_bytes(path.read_bytes() + b'x')
    assert (
        said(capsys, main(['train', '--workspace', str(ws.root), '--preset', 'mannequin']), path.name, 'changed') == 1
    )
    path.unlink()
    assert (
        said(capsys, main(['train', '--workspace', str(ws.root), '--preset', 'mannequin']), path.name, 'missing') == 1
    )


def test_a_frozen_split_cannot_be_changed_in_silence(finished, copy_of):
    from hgdpo_curate import freeze_split
    ws = copy_of(finished)
    folder = freeze_split(ws, 'v1', 'chance')                           # the same pairs: nothing happens
    winner = __import__('pandas').read_parquet(folder/'easy.parquet').winner_id[0]
    ws.append('reviews', [dict(subject_id=winner, decision='reject', reviewer='x')])
    with pytest.raises(UserError, match='--split'): freeze_split(ws, 'v1', 'chance')
    assert freeze_split(ws, 'v2', 'chance') != folder


def test_a_scorer_that_returns_nan_is_named_with_the_image(finished, copy_of):
    from hgdpo_curate import score_images
    ws = copy_of(finished)
    class Broken(Chance):
        name = 'broken'
        def score(self, images, prompts): return np.where(np.arange(len(images)) == 1, np.nan, 1.)
    with pytest.raises(UserError, match=r'broken gave nan for .*png'): score_images(ws, Broken(), progress=quiet)
    assert not len(ws.table('scores').query("scorer == 'broken'"))


def test_a_broken_scorer_ends_the_verb_with_one_sentence(finished, copy_of, random_base, capsys):
    import torch
    from hgdpo_curate.pipelines import assets_folder
    from safetensors.torch import load_file, save_file
    ws = copy_of(finished)
    shutil.copytree(assets_folder(), ws.root/'tiny')
    weights = load_file(ws.root/'tiny'/'scorer.safetensors')
    save_file({k: torch.full_like(v, float('nan')) for k, v in weights.items()}, ws.root/'tiny'/'scorer.safetensors')
    assert said(capsys, main(['score', '--workspace', str(ws.root)]), 'nan', '.png') == 1
    assert not len(ws.table('scores').query("scorer == 'smallscore'"))


def test_pairs_of_an_unfinished_workspace_are_sent_to_the_step_that_is_next(empty, photos, capsys):
    pairs = ['pairs', '--workspace', str(empty.root)]
    assert said(capsys, main(pairs), 'no photos', 'hgdpo photos --workspace') == 1
    import_photos(empty, photos, progress=plain)
    assert said(capsys, main(pairs), 'hgdpo pool --workspace') == 1


def test_a_pool_with_fewer_than_two_images_is_refused(empty, photos, random_base, capsys):
    import_photos(empty, photos, progress=plain)
    assert said(capsys, main(['pool', '--workspace', str(empty.root), '--n', '1']), 'below 2') == 2
    from hgdpo_curate import generate_pool
    with pytest.raises(UserError, match='two images'): generate_pool(empty, 1)
    from hgdpo_curate import score_images
    score_images(empty, Chance(), progress=quiet)
    assert said(capsys, main(['pairs', '--workspace', str(empty.root), '--scorer', 'chance']), 'hgdpo pool') == 1


@pytest.mark.parametrize('old, new, words', [
    ('steps = ', 'steps = "two" # ', "steps is 'two'; it must be a whole number."),
    ('guidance = ', 'guidance = nan # ', "guidance is 'nan'; it must be a number."),
    ('seed = ', 'seed = true # ', "seed is 'True'; it must be a whole number."),
    ('format = ', 'format = "3" # ', "format is '3'; it must be a whole number."),
    ('sampler = ', 'sampler = 5 # ', "sampler is '5'; it must be text."),
    ('resolution = ', 'resolution = "wide" # ', "The resolution 'wide' is not usable"),
    ('steps = ', 'steps = \xff # ', 'cannot be read'),
])
def test_a_mistyped_setting_is_named_with_its_file(empty, capsys, old, new, words):
    file = empty.root/'workspace.toml'
    file.write_bytes(file.read_text().replace(f'\n{old}', f'\n{new}').encode('latin-1'))
    for command in (['status'], ['pool'], ['score', '--scorer', 'smallscore']):
        code = main([*command, '--workspace', str(empty.root)])
        err = capsys.readouterr().err
        assert (code, len(err.strip().splitlines())) == (1, 1) and words in err and str(file) in err


def test_a_run_whose_configuration_was_changed_by_hand_is_named(finished, copy_of, capsys):
    ws = copy_of(finished)
    (ws.root/'runs'/'mine'/'easy').mkdir(parents=True)
    (ws.root/'runs'/'mine'/'config.json').write_text('{"base": "x",')
    words = 'mine/config.json is not as hgdpo writes it'
    for command in (['sample', '--prompt', 'a person', '--run', 'mine'], ['card', '--run', 'mine']):
        assert said(capsys, main([*command, '--workspace', str(ws.root)]), words) == 1


def test_a_disk_that_fills_up_anywhere_is_one_sentence(finished, capsys):
    from hgdpo_curate.cli import exit_code
    def fill():
        with open('/dev/full', 'w') as f: f.write('x')
    assert said(capsys, exit_code(fill), 'The disk is full for') == 1


def test_a_full_disk_leaves_the_tables_as_they_were(finished, copy_of, monkeypatch, capsys):
    import pyarrow.parquet as pq
    ws = copy_of(finished)
    before, write = len(ws.table('scores')), pq.ParquetWriter.write_table
    def full(writer, *a, **k):
        write(writer, *a, **k)                                                # the disk filled up halfway
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(pq.ParquetWriter, 'write_table', full)
    assert said(capsys, main(['score', '--workspace', str(ws.root)]), 'disk is full') == 1
    assert len(ws.table('scores')) == before and not [p for p in ws.root.rglob('*') if '.tmp' in p.name]
    monkeypatch.undo()
    assert main(['score', '--workspace', str(ws.root)]) == 0 and len(ws.table('scores')) > before


@pytest.mark.parametrize('error', ['SafetensorError: Io(Os { code: 28, kind: StorageFull, message: "No space left '
                                   'on device" }) os error 28', 'PytorchStreamWriter failed writing file data/3'])
def test_a_full_disk_while_training_leaves_no_half_files(finished, copy_of, monkeypatch, capsys, error):
    import safetensors.torch
    import torch
    ws = copy_of(finished)
    def full(*a, **k): raise RuntimeError(error)
    with monkeypatch.context() as m:
        m.setattr(safetensors.torch, 'save_file', full)
        m.setattr(torch, 'save', full)
        argv = [
            'train',
            '--workspace',
            str(ws.root),
            '--preset',
            'mannequin',
            '--max_train_steps',
            '2',
            '--checkpointing_steps',
            '1',
            '--train_batch_size',
            '2',
        ]
        assert said(capsys, main(argv), 'disk is full') == 1
    assert not [p for p in ws.root.rglob('*') if '.tmp' in p.name]
    assert main(argv) == 0


def test_a_workspace_inside_another_is_refused(empty, capsys):
    inside = empty.root/'inside'
    assert main(['init', '--workspace', str(inside), '--resolution', '40x56']) == 1
    assert f'lies inside the workspace {empty.root}' in capsys.readouterr().err and not inside.exists()


def test_doctor_names_a_database_that_does_not_answer_and_two_opencvs(monkeypatch, capsys):
    import importlib.metadata
    from types import SimpleNamespace
    monkeypatch.setenv('FIFTYONE_DATABASE_URI', 'mongodb://127.0.0.1:9')
    real = list(importlib.metadata.distributions())
    second = SimpleNamespace(metadata={'Name': 'opencv-python'}, entry_points=[], _normalized_name='opencv_python')
    monkeypatch.setattr(importlib.metadata, 'distributions', lambda: [*real, second])
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert (
        'BAD MongoDB' in out
        and 'does not answer' in out
        and 'BAD OpenCV' in out
        and 'keep one' in out
        and out.count('->') == 2
    )


@pytest.mark.parametrize(
    'argv, code, word',
    [
        (['train', '--preset', 'nonsense'], 2, 'no preset'),
        (['train', '--beta-dpo', '-1'], 2, 'greater than 0'),
        (['train', '--rank', 'eight'], 2, 'invalid int'),
        (['train', '--set', 'soft.rank=3'], 2, 'not name a stage'),
        (['train', '--resume_from_checkpoint', 'newest'], 2, 'latest'),
        (['tiny', '--steps', 'vae'], 2, '--steps takes'),
        (['train', '--split', 'v9'], 1, 'hgdpo pairs'),
        (['score', '--scorer', 'nonsense'], 2, 'pickscore'),
        (['pool', '--colour', 'red'], 2, 'hgdpo pool --help'),
        (['pool', '--batch', '0'], 2, 'below 1'),
        (['pool', '--limit', '-5'], 2, 'below 1'),
        (['train', '--checkpointing_steps', '0'], 2, 'below 1'),
        (['curate', '--port', '99999'], 2, 'between 1024'),
        (['train', '--device', 'nonsense'], 2, '--device cpu'),
        (['init', '--resolution', '512x512x3'], 2, 'multiples of 8'),
        (['recon', '--levels', '0'], 2, 'below 1'),
        (['recon', '--levels', '2000'], 2, 'noise level'),
        (['evaluate', '--run', 'none'], 1, 'hgdpo train'),
        (['evaluate', '--quick'], 2, 'belong to --table'),
        (['evaluate', '--table', 'stages'], 2, 'is a workspace'),
        (['flag', '--detector', 'yunet'], 1, '--detector_path'),
        (['card', '--split', 'v9'], 1, 'v9'),
    ],
)
def test_a_wrong_flag_value_says_what_is_allowed(finished, capsys, argv, code, word):
    got = main([argv[0], '--workspace', str(finished.root), *argv[1:]])
    err = capsys.readouterr().err
    assert got == code and word in err and 'Traceback' not in err, err


def test_a_stage_without_pairs_says_so(finished, copy_of):
    from hgdpo_curate import train_curriculum
    import pandas as pd
    ws = copy_of(finished)
    scores = ws.table('scores')
    low = scores.image_id.isin(ws.table('images').query("domain == 'intermediate'").image_id)
    ws.append('scores', scores[low].drop(columns='written_at').assign(score=-1.))
    from hgdpo_curate import freeze_split
    freeze_split(ws, 'none', 'chance')
    assert pd.read_parquet(ws.root/'splits'/'none'/'normal.parquet').empty
    with pytest.raises(UserError, match='normal has no pairs'):
        train_curriculum(
            ws,
            'none',
            'mannequin',
            progress=quiet,
            max_train_steps=1,
            train_batch_size=2,
        )


def test_ctrl_c_exits_with_130_and_keeps_what_was_made(empty, photos, random_base):
    import_photos(empty, photos, progress=plain)
    code = ("import contextlib, os, signal, sys, hgdpo_curate.long_jobs as p\n"
            "@contextlib.contextmanager\ndef bar(*a): yield lambda n: os.kill(os.getpid(), signal.SIGINT)\n"
            # whoever starts the tests in the background may have it ignored
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "p.progress_bar = bar\nfrom hgdpo_curate.cli import main\nsys.exit(main(sys.argv[1:]))")
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            code,
            'pool',
            '--workspace',
            str(empty.root),
            '--pretrained_model_name_or_path',
            str(random_base),
            '--n',
            '8',
            '--batch',
            '4',
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130 and 'run the same command again' in done.stderr and 'Traceback' not in done.stderr
    kept = len(empty.table('images').query("domain == 'generated'"))
    assert 0 < kept < 24


def test_the_networks_of_the_package_refuse_real_photographs(finished, copy_of, capsys):
    ws = copy_of(finished)
    ws.append('photo_facts', ws.table('photo_facts').drop(columns='written_at').assign(source='a camera'))
    assert said(capsys, main(['score', '--workspace', str(ws.root)]), 'only knows drawn people', 'hgdpo tiny') == 1


def test_scores_that_are_not_whole_make_no_pairs(finished, copy_of):
    from hgdpo_curate.curate.splits import pairs_of
    ws = copy_of(finished)
    scores = ws.table('scores').query("scorer == 'chance'")
    pool = ws.table('images').query("domain == 'generated'").image_id
    ws.append('scores', scores[scores.image_id.isin(pool[:3])].drop(columns='written_at').assign(scorer_version='2'))
    with pytest.raises(UserError, match='several versions'): pairs_of(ws, 'chance')
    with pytest.raises(UserError, match='hgdpo score'): pairs_of(ws, 'smallscore')


def test_a_workspace_can_be_moved_with_the_base_inside_it(finished, tmp_path, random_base):
    from hgdpo_curate import generate_pool, open_workspace
    from hgdpo_curate.workspace import set_base_model
    ws = create_workspace(tmp_path/'here', resolution='40x56', steps=2)
    import_photos(ws, export_photos(tmp_path/'photos', 3, seed=8), progress=plain)
    shutil.copytree(random_base, ws.root/'tiny'/'base')
    set_base_model(ws, ws.root/'tiny'/'base')
    moved = open_workspace(shutil.move(ws.root, tmp_path/'there'))
    assert generate_pool(moved, 2, progress=quiet) == 4
