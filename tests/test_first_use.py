"""What somebody meets who uses training for the first time.

What is missing is said before the first step, what it costs before it begins, and what comes next at the end.
"""
import logging
import re
import shutil

import pytest
from conftest import ROOT, Chance, quiet, winner
from PIL import Image

from hgdpo_curate import UserError, train_curriculum
from hgdpo_curate.cli import main

SHORT = dict(
    preset='mannequin',
    train_batch_size=2,
    max_train_steps=2,
    report_to='none',
    progress=quiet,
)


@pytest.fixture(scope='module')
def trained(finished, tmp_path_factory):
    "A copy, in a folder with a space, with a run that drew pictures and logged to TensorBoard, and a control."
    from hgdpo_curate import open_workspace
    ws = open_workspace(shutil.copytree(finished.root, tmp_path_factory.mktemp('first use')/'ws'))
    train_curriculum(ws, run='r', **SHORT | dict(report_to='tensorboard', validation_steps=1))
    train_curriculum(ws, control='naive', **SHORT)
    return ws


@pytest.fixture(scope='module')
def no_recon(random_base, tmp_path_factory):
    "A workspace whose pairs are frozen before there are reconstructions."
    from hgdpo_curate import create_workspace, generate_pool, import_photos, score_images
    from hgdpo_curate.toy.drawings import export_photos
    folder = tmp_path_factory.mktemp('no recon')
    ws = create_workspace(folder/'ws', resolution='40x56', steps=2, guidance=2.)
    import_photos(ws, export_photos(folder/'photos', 6, seed=3), progress=lambda items, **k: items)
    generate_pool(ws, 3, random_base, progress=quiet)
    score_images(ws, Chance(), progress=quiet)
    return ws


def test_pairs_before_recon_are_found_out_before_the_first_step(no_recon, capsys):
    ws, where = no_recon, ['--workspace', str(no_recon.root)]
    with pytest.warns(UserWarning, match='normal and hard have no pairs.*hgdpo recon'):
        assert main(['pairs', '--scorer', 'chance', '--controls', *where]) == 0
    out = capsys.readouterr().out
    assert 'noise levels 400 to 700' in out and 'next:' not in out
    with pytest.raises(UserError, match='stage normal has no pairs.*hgdpo recon .*hgdpo score .*--split NEW_NAME'):
        train_curriculum(ws, **SHORT)
    assert ws.names('runs') == [] and not (ws.root/'runs').exists()
    assert f"--workspace '{ws.root}'" in _error(lambda: train_curriculum(ws, **SHORT))       # it has a space
    # the easy stage has its pairs
    assert train_curriculum(ws, control='easy_only', **SHORT | dict(max_train_steps=1)).name == 'mannequin-easy-only'


def _error(action):
    with pytest.raises(UserError) as e: action()
    return str(e.value)


def test_a_stage_that_the_filter_emptied_is_said_so(no_recon):
    from hgdpo_curate.curate.left_out import empty_stage
    from types import SimpleNamespace
    counts = dict(easy=3, normal=0, hard=0)
    reasons = dict(normal=[dict(reason='filter: f(winner) < f(loser)')]*3)
    for stage in ('normal', 'hard', 'skip', 'real'):
        info = SimpleNamespace(counts=counts, scorer='smallscore', dropped=reasons)
        assert '--control easy_only' in empty_stage(no_recon, info, stage)


def test_a_control_is_evaluated_with_its_own_stages(trained, capsys):
    from hgdpo_curate import evaluate_runs
    how = dict(per_prompt=1, scorer=Chance(), progress=quiet)
    assert set(evaluate_runs(trained, 'mannequin-naive', **how).arm) == {'base', 'naive'}
    named = evaluate_runs(trained, 'mannequin-naive', ('base', 'naive'), **how)
    assert set(named.arm) == {'base', 'naive'}
    assert set(evaluate_runs(trained, 'r', **how).arm) == {'base', 'easy', 'normal', 'hard', 'hard + text encoder'}
    error = _error(lambda: evaluate_runs(trained, 'mannequin-naive', ('easy',), **how))
    assert 'has base, naive' in error


def test_a_control_is_called_one_in_its_report_and_on_its_card(trained):
    from hgdpo_curate import write_model_card
    from hgdpo_curate.document.model_card import own_arms
    from hgdpo_curate.evaluate.report import report_runs
    how = dict(per_prompt=1, scorer=Chance(), progress=quiet)
    page = report_runs(trained, 'mannequin-naive', **how)
    about = 'naive is of the control naive, not of HG-DPO: The photo against the pool'
    assert about in page.read_text() and 'Orderings of the paper' not in page.read_text()
    assert about in ' '.join((page.parent/'table.md').read_text().split())
    card = write_model_card(trained, 'mannequin-naive').path.read_text()
    assert '# mannequin-naive: a LoRA by the control naive, not by HG-DPO' in card and '- hg-dpo' not in card
    assert "`final/` is the U-Net's LoRA of <code>naive</code>." in card and 'up-sampling blocks' not in card
    # its failures are images that its own stage drew
    drawn = trained.table('images').query("domain == 'evaluation'").model
    assert len(own_arms(trained, 'mannequin-naive') & set(drawn)) == 1
    assert 'Generated images with the lowest scores' in card
    curriculum = write_model_card(trained, 'r').path.read_text()
    assert '# r: a LoRA by HG-DPO' in curriculum and '- hg-dpo' in curriculum and 'up-sampling blocks' in curriculum


def test_a_failed_start_is_no_training(finished, copy_of, capsys):
    from hgdpo_curate.document.footprint import footprint_of
    from hgdpo_curate.files import write_json
    from hgdpo_curate.workspace import workspace_status
    ws = copy_of(finished)
    shutil.rmtree(ws.root/'runs', ignore_errors=True)
    try: import bitsandbytes                # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match='bitsandbytes'): train_curriculum(ws, **SHORT, optimizer='adamw8bit')
        assert main(['train', '--workspace', str(ws.root), '--preset', 'mannequin', '--optimizer', 'adamw8bit']) == 1
        assert 'bitsandbytes' in capsys.readouterr().err
    with pytest.raises(UserError, match='small one.*--preset tiny-photos.*640,000 steps'):
        train_curriculum(
            ws,
            preset='sd15-paper',
            optimizer='adamw',
            report_to='none',
            progress=quiet,
        )
    assert not (ws.root/'runs').exists()
    # what earlier versions left behind
    write_json(ws.root/'runs'/'sd15-24gb'/'config.json', dict(split='v1', base='', preset=dict(stages=[])))
    (ws.root/'runs'/'sd15-24gb'/'logs').mkdir()
    assert ws.names('runs') == [] and 'runs     none yet' in workspace_status(ws)
    assert footprint_of(ws, winner(ws)['photo']).runs == {}


def test_a_first_step_that_fails_leaves_no_run(finished, copy_of, monkeypatch):
    from hgdpo_curate.train.trainer import StageTrainer
    ws = copy_of(finished)
    def fails(self): raise MemoryError
    monkeypatch.setattr(StageTrainer, 'train_step', fails)
    with pytest.raises(MemoryError): train_curriculum(ws, run='oom', **SHORT)
    assert 'oom' not in ws.names('runs')
    monkeypatch.undo()
    # nothing was begun, so another recipe may take the name
    assert train_curriculum(ws, run='oom', **SHORT | dict(control='easy_only', max_train_steps=1)).name == 'oom'


def test_the_preset_of_another_kind_of_base_is_questioned(random_base):
    from hgdpo_curate.train.presets import check_suits, load_preset, presets_for
    assert presets_for(random_base) == ('tiny-photos', 'mannequin', 'mannequin-fingers')
    with pytest.warns(UserWarning, match='--preset tiny-photos'):
        check_suits(load_preset('sd15-24gb', max_train_steps=2), random_base)
    with pytest.raises(UserError, match='--preset tiny-photos'): check_suits(load_preset('sdxl-48gb'), random_base)


def test_what_a_training_costs_is_said_and_what_comes_next(finished, copy_of, capsys):
    ws = copy_of(finished)
    args = '--preset mannequin --max_train_steps 1 --train_batch_size 2 --report_to none'.split()
    assert main(['train', '--workspace', str(ws.root), '--run', 'a', *args]) == 0
    shown = capsys.readouterr()
    assert re.search(r'mannequin: 4 steps \(easy 1, normal 1, hard 1, text_encoder 1\) of 2 pairs', shown.err)
    assert 'U-Net forwards' in shown.err and 'MB of disk' in shown.err and '(stage 1 of 4)' in shown.err
    assert f'next: hgdpo evaluate --workspace {ws.root} --run a' in shown.out
    assert main(['pool', '--workspace', str(ws.root), '--n', '4']) == 0
    said = capsys.readouterr().err
    assert re.search(r'image pool: \d+ images of 40 x 56 to make \(\d+ are there\), about [\d,]+ U-Net', said)


def test_another_step_count_is_not_called_another_preset(trained):
    error = _error(lambda: train_curriculum(trained, run='r', **SHORT | dict(max_train_steps=3)))
    assert 'easy.max_train_steps (2 there, 3 now)' in error and 'preset;' not in error
    assert 'seed (0 there, 1 now)' in _error(lambda: train_curriculum(trained, run='r', **SHORT, seed=1))


def test_stages_overlay_in_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    logs = trained.root/'runs'/'r'/'logs'
    assert {p.name for p in logs.iterdir()} == {'easy', 'normal', 'hard', 'text_encoder'}
    for folder in logs.iterdir():
        events = EventAccumulator(str(folder))
        events.Reload()
        tags = events.Tags()
        assert {'loss', 'grad_norm'} <= set(tags['scalars']) and tags['images'] == ['grid']
        assert not [t for t in tags['scalars'] if folder.name in t]
        assert any('hparams' in p for p in events.summary_metadata)


def test_a_grid_begins_with_the_base(trained):
    from hgdpo_curate.train.log import _shown_live, grid_sheet, RunFolder
    run = RunFolder(trained.root/'runs'/'r')
    names = sorted(p.name for p in (run/'easy'/'grids').iterdir())
    assert names == [f'step-{n:09d}.png' for n in (0, 1, 2)]
    row = Image.open(run/'easy'/'grids'/names[0])
    easy, normal = grid_sheet(run/'easy'), grid_sheet(run/'normal')
    high = row.height*(112//row.height) + 2        # small pictures are enlarged, by a whole number
    assert (easy.height, normal.height) == (3*high, 4*high) and easy.width > row.width
    # curves that stand above in the notebook are not shown a second time
    whole = run._repr_html_().count('<img')
    _shown_live.add(str(run/'easy'))
    assert run._repr_html_().count('<img') == whole - 2 and run._repr_html_().count('<img') == whole


def test_samples_say_what_drew_them(trained, capsys):
    from hgdpo_curate import sample_images
    ws, prompts = trained, ['A person, in a café', 'a person with red hair']
    (ws.root/'runs'/'r'/'final'/'pytorch_lora_weights.safetensors').touch()                     # the last one
    files = sample_images(ws, prompts, per_prompt=2, progress=quiet)
    assert [f.name.rpartition('-')[0] for f in files[:3]] == [
        'a-person-in-a-cafe-seed0',
        'a-person-in-a-cafe-seed1',
        'a-person-with-red-hair-seed0',
    ]
    texts = Image.open(files[1]).text
    assert texts['prompt'] == prompts[0] and texts['run'] == 'r' and texts['seed'] == '1' and texts['base'] == 'tiny'
    assert float(texts['weight']) == 1 and int(texts['steps']) == 2 and float(texts['guidance']) == 2     # the pool's
    sheet = Image.open(files[0].with_name('contact-sheet-r.png'))
    assert sheet.width > 2*ws.size[0] and sheet.height > 2*ws.size[1]
    base = sample_images(ws, prompts[:1], 'base', progress=quiet)[0]
    assert base != files[0] and Image.open(base).text['run'] == 'base' and 'weight' not in Image.open(base).text
    assert main(['sample', '--workspace', str(ws.root), '--prompt', *prompts]) == 0
    shown = capsys.readouterr()
    assert 'the LoRA of the run r at weight 1' in shown.err and 'contact-sheet-r.png' in shown.out


def test_the_contact_sheet_goes_with_a_photo(trained, copy_of):
    from hgdpo_curate import forget, sample_images
    ws = copy_of(trained, 'with sheet')
    one = winner(ws)
    files = sample_images(ws, [one['prompt'], 'in a garden'], 'r', progress=quiet)
    sheet = files[0].with_name('contact-sheet-r.png')
    assert sheet.exists()
    forget(ws, one['photo'], app=False, progress=quiet)
    assert not files[0].exists() and not sheet.exists() and files[1].exists()


def test_pairs_say_in_words_why_and_what_next(finished, copy_of, capsys):
    from hgdpo_curate.curate.left_out import explain_left_out
    from hgdpo_curate.files import counted
    ws = copy_of(finished, 'my photos')
    assert main(['pairs', '--workspace', str(ws.root), '--split', 'v2', '--scorer', 'chance']) == 0
    out = capsys.readouterr().out
    assert '1 prompts' not in out and '1 pairs' not in out and 'f(winner)' not in out and 'left out:' not in out
    assert f"next: hgdpo train --workspace '{ws.root}' --split v2 --preset tiny-photos" in out
    assert counted(1, 'prompt') == '1 prompt' and counted(2000, 'pair') == '2,000 pairs'
    assert explain_left_out([dict(reason='photo not approved')]) == ['1 prompt: photo not approved']


def test_pool_without_a_base_names_tiny(no_recon, tmp_path):
    from hgdpo_curate import create_workspace, generate_pool, import_photos
    ws = create_workspace(tmp_path/'my ws', resolution='40x56')
    import_photos(ws, no_recon.root.parent/'photos', progress=lambda items, **k: items)
    assert f"hgdpo tiny --workspace '{ws.root}'" in _error(lambda: generate_pool(ws, 2, progress=quiet))


def test_printed_commands_name_the_real_workspace_and_are_quoted():
    "A command with a workspace comes from `command_line`, which quotes it."
    for file in (ROOT/'hgdpo_curate').rglob('*.py'):
        for n, line in enumerate(file.read_text().splitlines(), 1):
            bad = re.search(r'hgdpo \w+ .*--workspace (W\b|\{(?!folder\.name))', line)
            assert not bad, f'{file.name}:{n}: {line.strip()}'


def test_the_search_of_fiftyone_for_other_databases_is_quiet():
    from hgdpo_curate.curate import database

    def record(words):
        return logging.LogRecord(
            'fiftyone.core.service',
            30,
            '',
            0,
            words,
            ('Process 7',),
            None,
        )
    assert not database._is_news(record('%s did not respond')) and database._is_news(record('%s has ended'))


def test_how_long_it_takes_is_said_once_and_only_of_long_jobs(monkeypatch, capsys):
    import time

    from hgdpo_curate.long_jobs import Pace
    now = [0.]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    for total, said in ((10_000, 'about 28 minutes left'), (100, '')):
        pace = Pace(total, 'training')
        for _ in range(30):
            pace(10)
            now[0] += 1.7
        assert capsys.readouterr().err.count('left on this machine') == bool(said)


def test_judging_says_how_many_images_it_looks_at_and_how_long_it_takes(finished, copy_of, capsys, monkeypatch):
    import numpy as np
    from hgdpo_curate import score_images
    from hgdpo_curate.long_jobs import Pace
    from hgdpo_curate.judge.detections import detect
    class Slow(Chance):
        name = 'slow'
        def score(self, images, prompts):
            from time import sleep
            sleep(.02)
            return np.zeros(len(images))
    class Blind:
        name, version = 'blind', '1'
        def detect(self, images): return [[] for _ in images]
    ws = copy_of(finished)
    monkeypatch.setattr(Pace, 'measured', .01)
    monkeypatch.setattr(Pace, 'worth_saying', 0)
    count = score_images(ws, Slow())
    said = capsys.readouterr().err
    assert f'scores by slow: {count} images to judge.' in said and 'left on this machine' in said
    count = detect(ws, Blind())
    assert f'detections by blind: {count} images to judge.' in capsys.readouterr().err
    assert detect(ws, Blind()) == 0 and 'to judge' not in capsys.readouterr().err


def test_tiny_says_its_steps_before_it_begins(tmp_path, capsys):
    from hgdpo_curate.train.small_models import train_mannequins
    few = dict(steps=dict(vae=2, base=3, scorer=2, evaluator=2), drawings_each=(8, 8, 8))
    train_mannequins(tmp_path, **few)
    said = capsys.readouterr().err
    assert 'steps to train on 24 pictures of 40 x 56: vae 2, base 3, scorer 2, evaluator 2.' in said
    assert said.index('steps to train') < said.index('training the small vae')
    train_mannequins(tmp_path, **few | dict(steps=dict(scorer=3)))
    assert 'scorer 3 (vae, base, evaluator: there).' in capsys.readouterr().err
    train_mannequins(tmp_path, **few | dict(steps={}))
    assert 'steps to train' not in capsys.readouterr().err


def test_init_says_how_many_photos_the_test_share_takes(tmp_path, capsys):
    assert main(['init', '--workspace', str(tmp_path/'ws'), '--resolution', '40x56']) == 0
    said = capsys.readouterr().out
    assert '5% of the prompts' in said and 'holding out 30 takes 600 photos; for 120, give' in said
    assert main(['init', '--workspace', str(tmp_path/'more'), '--test_share', '.33']) == 0
    assert 'takes 91 photos.' in capsys.readouterr().out
