"""What goes wrong on long jobs: killed judges, no memory on the GPU, pictures without colours, files cut short, a disk
that can only be read or has gone."""
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import Chance, quiet, ROOT

from hgdpo_curate import create_workspace, generate_pool, open_workspace, reconstruct, score_images, UserError
from hgdpo_curate.cli import main
from hgdpo_curate.images.jobs import image_job, run_jobs, seed_of
from hgdpo_curate.toy.drawings import draw_person

JUDGING = """
import sys, time
from hgdpo_curate import open_workspace
from hgdpo_curate.images.jobs import map_images
ws, done = open_workspace(sys.argv[1]), 0
def judge(rows, pictures):
    global done
    time.sleep(.05)
    done += len(rows)
    print(done, flush=True)
    return [dict(image_id=i, scorer='slow', scorer_version='1', score=1.) for i in rows.image_id]
map_images(ws, ws.table('images'), 'scores', judge, 'slow', 2, seconds=float(sys.argv[2]), progress=lambda t, l: print)
"""


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "A workspace with 80 generated images."
    ws = create_workspace(tmp_path_factory.mktemp('drawn')/'ws', resolution='40x56')
    jobs = [image_job('p', 'a person', seed_of('p', k), 'drawn', ws.size, 'none', 1, 1.) for k in range(80)]
    def make(part): return [draw_person([7, j['seed']]).pil() for j in part]
    run_jobs(ws, None, jobs, 'generated', 16, make=make, progress=quiet)
    return ws, jobs


@pytest.mark.parametrize('seconds, most_lost, parts', [(.5, 2*(10 + 4), 5), (30., 80, 0)])
def test_a_killed_judge_loses_no_more_than_it_did_since_the_last_write(drawn, copy_of, seconds, most_lost, parts):
    ws = copy_of(drawn[0])
    process = subprocess.Popen(
        [sys.executable, '-c', JUDGING, str(ws.root), str(seconds)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    judged = 0
    for line in process.stdout:
        judged = max(judged, int(line))
        if judged == 60: os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = len(ws.table('scores'))
    assert judged - kept <= most_lost and len(ws.parts('scores')) <= parts and (kept > 0) == (parts > 0)


def test_a_pool_goes_on_with_half_the_batch_where_the_gpu_is_too_small(tmp_path, drawn, capsys):
    import torch
    ws, sizes = create_workspace(tmp_path/'ws', resolution='40x56'), []
    def make(part):
        if len(part) > 5: raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')
        sizes.append(len(part))
        return [draw_person([7, j['seed']]).pil() for j in part]
    assert run_jobs(ws, None, drawn[1], 'generated', 16, make=make) == 80
    assert set(sizes) == {4} and sum(sizes) == 80
    assert capsys.readouterr().err.count('not enough for') == 2                  # 16, then 8; once each
    ours, others = (w.table('images').set_index('image_id').sha256 for w in (ws, drawn[0]))
    assert ours.sort_index().equals(others.sort_index())


def overflowing(base, folder): # a copy whose VAE is too large for half precision within, and right at the end
    from safetensors.torch import load_file, save_file
    shutil.copytree(base, folder)
    file, = (folder/'vae').glob('*.safetensors')
    weights = load_file(file)
    first, last = ([k for k in weights if k.startswith('decoder.') and k.endswith('.weight')][i] for i in (0, -1))
    for k in (first, first.replace('weight', 'bias')): weights[k] = weights[k]*2e4
    weights[last] = weights[last]/2e4
    save_file(weights, file, metadata=dict(format='pt'))
    return folder


def test_pictures_without_colours_are_decoded_again_or_named(finished, random_base, copy_of, tmp_path):
    import numpy as np
    base = overflowing(random_base, tmp_path/'overflowing')
    ws = create_workspace(tmp_path/'ws', resolution='40x56', steps=2, guidance=2.)
    for table in ('prompts', 'images', 'photo_facts'):
        rows = finished.table(table)
        ws.append(table, rows if table != 'images' else rows[rows.domain == 'real'])
    shutil.copytree(finished.root/'images'/'real', ws.root/'images'/'real')
    assert generate_pool(ws, 2, base, limit=2, mixed_precision='fp16', progress=quiet) == 4
    assert reconstruct(ws, [500], limit=2, base=base, mixed_precision='fp16', progress=quiet) == 2
    made = ws.table('images').query("domain != 'real'")
    assert all(np.asarray(ws.open_image(p)).std() > 1 for p in made.path)


def without_colours(base, folder): # a copy whose VAE decodes nothing, in any precision
    from safetensors.torch import load_file, save_file
    shutil.copytree(base, folder)
    file, = (folder/'vae').glob('*.safetensors')
    weights = load_file(file)
    first = next(k for k in weights if k.startswith('decoder.') and k.endswith('.bias'))
    weights[first] = weights[first]*float('nan')
    save_file(weights, file, metadata=dict(format='pt'))
    return folder


def test_pictures_that_stay_without_colours_are_tried_once_and_forgotten_with_their_photo(
    finished, random_base, tmp_path
):
    from hgdpo_curate import forget
    from hgdpo_curate.images.redraw import redraw_parts
    from hgdpo_curate.pipelines import load_pipeline
    base = without_colours(random_base, tmp_path/'without')
    ws = create_workspace(tmp_path/'ws', base_model=str(base), resolution='40x56', steps=2, guidance=2.)
    for table in ('prompts', 'images', 'photo_facts'):
        rows = finished.table(table)
        ws.append(table, rows if table != 'images' else rows[rows.domain == 'real'])
    shutil.copytree(finished.root/'images'/'real', ws.root/'images'/'real')
    prompts = ws.table('prompts').query("fold == 'train'").sort_values('prompt_id')[:2]
    photos = ws.table('images').merge(prompts[['prompt_id', 'prompt']], on='prompt_id')
    about = dict(part='box', side='', drawn_by='anna', mask=[(.1, .3, .6, .8)]*2)
    parts, pipe = photos.rename(columns=dict(image_id='source_id')).assign(**about), load_pipeline(base, 'cpu')
    marks = ws.root/'cache'/'without_colours'
    commands = [
        (4, lambda: generate_pool(ws, 2, limit=2, progress=quiet)),
        (2, lambda: reconstruct(ws, [500], limit=2, progress=quiet)),
        (2, lambda: redraw_parts(ws, pipe, parts, {500: 500}, ('base', 2, 1.), progress=quiet)),
    ]
    for n, command in commands:
        with pytest.warns(UserWarning, match=f'{n} images came out without colours .*left out .*delete .*{marks.name}'):
            assert command() == 0
        with pytest.warns(UserWarning) as said: assert command() == 0
        assert [str(w.message).partition(';')[0] for w in said] == [
            f'{n} images without colours are left out (marked)'
        ]
    assert len([*marks.iterdir()]) == 8 and set(ws.table('images').domain) == {'real'}
    gone, kept = prompts.itertuples()
    forget(ws, gone.real_image_id, app=False, progress=quiet)
    left = [p.name for p in marks.iterdir()]
    assert len(left) == 4 and all(kept.prompt_id in name for name in left)
    shutil.rmtree(marks)
    with pytest.warns(UserWarning, match='2 images came out without colours'): generate_pool(ws, 2, limit=1)


def test_a_picture_without_colours_is_made_once_its_mark_is_deleted_and_an_evaluation_tries_again(drawn, tmp_path):
    ws, jobs = create_workspace(tmp_path/'ws', resolution='40x56'), drawn[1][:4]
    def make(part): return [draw_person([7, j['seed']]).pil() for j in part]
    def spoiled(part): return [None, *make(part)[1:]]
    def run(domain, how): return run_jobs(ws, None, jobs, domain, 4, make=how, progress=quiet)
    with pytest.warns(UserWarning, match='1 image came out'): assert run('generated', spoiled) == 3
    mark, = (ws.root/'cache'/'without_colours').iterdir()
    assert mark.name == f'{jobs[0]["image_id"]}-p'
    with pytest.warns(UserWarning, match='1 image without colours is left out'): assert run('generated', make) == 0
    mark.unlink()
    assert run('generated', make) == 1 and set(ws.table('images').image_id) == {j['image_id'] for j in jobs}
    jobs = drawn[1][4:8]
    with pytest.warns(UserWarning, match='the same command tries again'): assert run('evaluation', spoiled) == 3
    assert run('evaluation', make) == 1


def test_a_file_cut_short_is_made_again_and_a_photo_is_named(finished, copy_of, random_base, capsys):
    ws = copy_of(finished)
    rows = ws.table('images').query("domain == 'generated'").reset_index(drop=True)
    whole = {p: (ws.root/p).read_bytes() for p in rows.path[:2]}
    for path, data in whole.items(): (ws.root/path).write_bytes(data[:len(data)//2])
    scorer = Chance()
    scorer.version = '2'
    with pytest.raises(UserError, match='are missing or cut short in .* with: hgdpo pool --workspace'):
        score_images(ws, scorer, progress=quiet)
    assert len(ws.table('scores').query("scorer_version == '2'")) == len(ws.table('images')) - 2
    command = ['pool', '--workspace', str(ws.root), '--n', '3']
    assert main(command) == 0 and capsys.readouterr().out.startswith('2 images made')
    assert {p: (ws.root/p).read_bytes() for p in whole} == whole
    assert main(command) == 0 and capsys.readouterr().out.startswith('0 images made')
    assert score_images(ws, scorer, progress=quiet) == 2
    photo = ws.root/ws.table('images').query("domain == 'real'").path.iloc[0]
    photo.write_bytes(photo.read_bytes()[:100])
    scorer.version = '3'
    with pytest.raises(UserError, match=f'{photo.name} is missing or cannot be read .*; restore it'):
        score_images(open_workspace(ws.root), scorer, progress=quiet)


class Unmounted:
    "A disk that goes: its files are elsewhere, and an empty folder is left, as at a mount point."
    def __init__(self, ws): self.root, self.kept = ws.root, ws.root.with_name('kept')

    def go(self):
        if self.kept.exists(): return
        self.root.rename(self.kept)
        self.root.mkdir()

    def come_back(self): # what was left where the disk had been
        left = [p for p in self.root.rglob('*') if p.is_file()]
        shutil.rmtree(self.root)
        self.kept.rename(self.root)
        return left


def test_a_disk_that_goes_while_images_are_made_and_scored_is_one_sentence_and_nothing_is_written_beside_it(
    drawn, tmp_path
):
    ws, jobs = create_workspace(tmp_path/'ws', resolution='40x56'), drawn[1]
    ws.append('prompts', [dict(prompt_id='p', prompt='a person', fold='train')])
    disk, made = Unmounted(ws), []
    def make(part):
        while len(made) == 32 and len(ws.table('images')) < 32: time.sleep(.01)     # the batch before is being saved
        if len(made) == 32: disk.go()
        made.extend(part)
        return [draw_person([7, j['seed']]).pil() for j in part]
    with pytest.raises(UserError, match='its disk or network drive has gone; bring it back and run the same command'):
        run_jobs(ws, None, jobs, 'generated', 16, make=make, progress=quiet)
    assert disk.come_back() == [] and len(ws.table('images')) == 32
    run_jobs(ws, None, jobs, 'generated', 16, make=make, progress=quiet)
    assert ws.table('images').sha256.sort_values().tolist() == drawn[0].table('images').sha256.sort_values().tolist()
    class Going(Chance):
        def score(self, images, prompts):
            disk.go()
            return super().score(images, prompts)
    with pytest.raises(UserError, match='its disk or network drive has gone'): score_images(ws, Going(), progress=quiet)
    assert disk.come_back() == [] and not list((ws.root/'cache').glob('unreadable/*'))
    assert score_images(ws, Chance(), progress=quiet) == 80


def test_a_disk_that_goes_while_training_leaves_the_last_checkpoint(finished, copy_of):
    from hgdpo_curate import train_curriculum
    ws, steps = copy_of(finished), []
    disk = Unmounted(ws)
    how = dict(
        preset='mannequin',
        control='easy_only',
        run='r',
        train_batch_size=2,
        max_train_steps=6,
        checkpointing_steps=2,
        report_to='none',
    )
    def going(total, label):
        def update(n):
            steps.extend(['step'] if label.startswith('training') and n else [])
            if len(steps) == 3: disk.go()
        return update
    with pytest.raises(UserError, match='its disk or network drive has gone'):
        train_curriculum(ws, **how, progress=going)
    assert disk.come_back() == []
    run = ws.root/'runs'/'r'/'easy'
    assert [p.name for p in (run/'checkpoints').iterdir()] == ['step-0000002.pt']
    train_curriculum(ws, **how, progress=quiet)
    assert (run/'done.json').exists()


def test_a_disk_that_can_only_be_read_is_one_sentence_for_every_command(finished, copy_of):
    "Mounted so for a process of its own."
    ws = copy_of(finished)
    code = """
import contextlib, io, sys
from hgdpo_curate.cli import main
for words in sys.argv[2:]:
    verb, *flags = words.split()
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = main([verb, '--workspace', sys.argv[1], *flags])
    print(verb, code, err.getvalue().strip().splitlines()[-1:], sep='|')
"""
    verbs = ['score', 'pairs --split v2 --scorer chance', 'pack', 'status']
    process = [sys.executable, '-c', code, str(ws.root), *verbs]
    mount = f'mount --bind {ws.root} {ws.root} && mount -o remount,ro,bind {ws.root} && exec "$@"'
    before = {p: p.stat().st_mtime_ns for p in ws.root.rglob('*')}
    mounted = ['unshare', '-m', 'sh', '-c', mount, 'sh', *process]
    done = subprocess.run(mounted, capture_output=True, text=True, cwd=ROOT)
    if 'not permitted' in done.stderr: pytest.skip('this user may not mount')
    said = dict((line.split('|')[0], line.split('|')[1:]) for line in done.stdout.splitlines())
    assert [*said] == [v.split()[0] for v in verbs], done.stderr
    assert said.pop('status') == ['0', '[]']
    for code, words in said.values():
        assert code == '1' and 'Read-only file system' in words and 'or work on a copy' in words, words
    assert {p: p.stat().st_mtime_ns for p in ws.root.rglob('*')} == before
