"""Several processes on one workspace share the images to make; none is made twice, and a dead one's are taken over."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import plain, quiet, ROOT
from test_killed_pool import images_of

from hgdpo_curate import create_workspace, generate_pool, import_photos, open_workspace, reconstruct, UserError
from hgdpo_curate.images.jobs import image_job, Jobs, run_jobs, seed_of
from hgdpo_curate.leases import Leases
from hgdpo_curate.toy.drawings import draw_person, export_photos

JOBS, BATCH = 60, 4
MAKING = f"""
import sys, time
from pathlib import Path
from hgdpo_curate import open_workspace
from hgdpo_curate.images.jobs import image_job, run_jobs, seed_of
from hgdpo_curate.toy.drawings import draw_person
ws = open_workspace(sys.argv[1])
jobs = [image_job('p', 'a person', seed_of('p', k), 'drawn', ws.size, 'none', 1, 1.) for k in range({JOBS})]
def make(part):
    print(*[j['image_id'] for j in part], flush=True)
    time.sleep(.15)
    return [draw_person([7, j['seed']]).pil() for j in part]
print('ready', flush=True)
while not Path(sys.argv[2]).exists(): time.sleep(.01)
run_jobs(ws, None, jobs, 'generated', {BATCH}, make=make, progress=lambda total, label: lambda n: None)
"""


def start(ws, count, code=MAKING): # -> processes that begin together
    go = ws.root.parent/f'{ws.root.name}-go'
    command = [sys.executable, '-c', code, str(ws.root), str(go)]
    running = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True, cwd=ROOT) for n in range(count)]
    for p in running: assert p.stdout.readline() == 'ready\n'
    go.touch()
    return running


def made_by(process): # -> ids of its images, in order
    return process.stdout.read().split()


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "What one process makes."
    ws = create_workspace(tmp_path_factory.mktemp('alone')/'ws', resolution='40x56')
    jobs = [image_job('p', 'a person', seed_of('p', k), 'drawn', ws.size, 'none', 1, 1.) for k in range(JOBS)]
    def make(part): return [draw_person([7, j['seed']]).pil() for j in part]
    run_jobs(ws, None, jobs, 'generated', BATCH, make=make, progress=quiet)
    return ws, jobs


def test_two_processes_make_each_image_once_and_both_end_when_all_are_there(alone, tmp_path):
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    running = start(ws, 2)
    made = [made_by(p) for p in running]
    assert [p.wait() for p in running] == [0, 0]
    assert sorted(made[0] + made[1]) == sorted(images_of(alone[0]))
    assert min(map(len, made)) >= JOBS//4
    assert images_of(ws) == images_of(alone[0])
    assert not (ws.root/'cache'/'leases').exists()


def test_what_a_killed_one_had_taken_is_made_by_the_other(alone, tmp_path):
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    killed, other = start(ws, 2)
    first = [killed.stdout.readline().split() for _ in range(3)]
    os.kill(killed.pid, signal.SIGKILL)                     # it stays a zombie while the other goes on
    made = made_by(other)
    assert other.wait() == 0 and killed.wait() == -signal.SIGKILL
    twice = set(made) & set(sum(first, []) + made_by(killed))
    assert images_of(ws) == images_of(alone[0])
    assert 0 < len(twice) <= 2*BATCH and len(made) == len(set(made))      # in flight, and being saved


def a_lease(ws, image_id, ago=0, **about): # of a process on another machine
    folder = ws.root/'cache'/'leases'
    folder.mkdir(parents=True, exist_ok=True)
    (folder/f'{image_id}.0').write_text(json.dumps(dict(host='gpu2', pid=4711, started=0, place='far') | about))
    os.utime(folder/f'{image_id}.0', (time.time() - ago,)*2)


def make_some(ws, jobs, progress=quiet): # -> ids
    made = []
    def make(part):
        made.extend(j['image_id'] for j in part)
        return [draw_person([7, j['seed']]).pil() for j in part]
    run_jobs(ws, None, jobs, 'generated', BATCH, make=make, progress=progress)
    return made


def test_images_of_another_machine_are_waited_for_and_made_when_its_lease_expires(alone, tmp_path, monkeypatch, capsys):
    ws, jobs = create_workspace(tmp_path/'ws', resolution='40x56'), alone[1][:12]
    ids = [j['image_id'] for j in jobs]
    monkeypatch.setattr(Leases, 'lasts', 2.5)
    monkeypatch.setattr(Leases, 'every', .1)
    a_lease(ws, ids[0])
    a_lease(ws, ids[1], ago=5)
    made = make_some(ws, jobs, progress=None)
    assert made[-1] == ids[0] and sorted(made) == sorted(ids)
    said = capsys.readouterr().err
    assert 'Shared with' not in said and 'Waiting for 1 image of process 4711 on gpu2; if it has died' in said


# the second process is on a machine whose clock differs, and whose file system takes times from the machine, as Lustre
# does: simulated where a file is touched
ELSEWHERE = '''
import os, sys, time
from hgdpo_curate import leases
if sys.argv[3] == '1':
    touch, leases._place = os.utime, lambda: 'far'
    os.utime = lambda path, times=None: touch(path, times or (time.time() + {hours}*3600,)*2)
''' + MAKING


@pytest.mark.parametrize('hours', [-2, 2])
def test_clocks_of_two_machines_may_differ_by_hours(alone, tmp_path, monkeypatch, hours):
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    running = start(ws, 2, ELSEWHERE.replace('{hours}', str(hours)))
    made = [made_by(p) for p in running]
    assert [p.wait() for p in running] == [0, 0] and min(map(len, made)) > 0
    assert sorted(made[0] + made[1]) == sorted(images_of(alone[0]))                         # each once
    # one that was killed there has a last sign of life in the past or the future, and none follows
    monkeypatch.setattr(Leases, 'every', .1)
    shutil.rmtree(ws.root/'tables'/'images')
    a_lease(ws, alone[1][0]['image_id'], ago=-hours*3600)
    assert sorted(make_some(ws, alone[1][:BATCH])) == sorted(j['image_id'] for j in alone[1][:BATCH])


def test_what_another_machine_finishes_meanwhile_is_not_made_again(alone, tmp_path, monkeypatch):
    ws, jobs = create_workspace(tmp_path/'ws', resolution='40x56'), alone[1][:12]
    a_lease(ws, jobs[5]['image_id'])
    elsewhere, append = open_workspace(ws.root), ws.append
    def meanwhile(name, rows): # the other one writes its row and gives its lease back while we save ours
        if (ws.root/'cache'/'leases'/f'{jobs[5]["image_id"]}.0').exists():
            row = elsewhere.save_image(draw_person([7, jobs[5]['seed']]).pil(), 'generated', jobs[5]['image_id'])
            elsewhere.append('images', [row])
            (ws.root/'cache'/'leases'/f'{jobs[5]["image_id"]}.0').unlink()
        return append(name, rows)
    monkeypatch.setattr(ws, 'append', meanwhile)
    made = make_some(ws, jobs)
    assert len(made) == 11 and jobs[5]['image_id'] not in made and len(ws.table('images')) == 12


def test_a_folder_that_cannot_be_written_is_one_sentence(alone, tmp_path):
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    (ws.root/'cache').write_text('a file where the folder should be')
    with pytest.raises(UserError, match='cache/leases cannot be written .*; make the workspace writable'):
        make_some(ws, alone[1])


SCORING = """
import sys, time
from pathlib import Path
from hgdpo_curate import open_workspace, score_images
class Slow:
    name, version = 'slow', '1'
    def score(self, images, prompts):
        print(len(images), flush=True)
        time.sleep(.02*len(images))
        return [float(sum(im.getpixel((9, 9)))) for im in images]
print('ready', flush=True)
while not Path(sys.argv[2]).exists(): time.sleep(.01)
score_images(open_workspace(sys.argv[1]), Slow(), batch=4, progress=lambda total, label: lambda n: None)
"""


@pytest.mark.parametrize('kill', [False, True])
def test_two_processes_score_each_image_once_and_a_killed_one_is_replaced(alone, tmp_path, kill):
    ws = open_workspace(shutil.copytree(alone[0].root, tmp_path/'ws'))
    ws.append('prompts', [dict(prompt_id='p', prompt='a person', fold='train')])
    first, second = start(ws, 2, SCORING)
    if kill:
        for _ in range(3): first.stdout.readline()
        os.kill(first.pid, signal.SIGKILL)
    counts = [sum(map(int, made_by(p))) for p in (second, first)]
    assert second.wait() == 0 and first.wait() == (-signal.SIGKILL if kill else 0)
    scores = ws.table('scores', history=True)
    assert sorted(scores.image_id) == sorted(ws.table('images').image_id)
    assert kill or (sum(counts) == JOBS and min(counts) > 0)
    assert not kill or counts[0] == JOBS             # nothing of the other was written yet


def test_a_pool_and_its_judge_drop_what_was_removed_while_they_worked(tmp_path):
    from conftest import plain
    from hgdpo_curate import forget, import_photos
    from hgdpo_curate.images.jobs import map_images
    from hgdpo_curate.toy.drawings import export_photos
    ws = create_workspace(tmp_path/'ws', resolution='40x56', test_share=0.)
    import_photos(ws, export_photos(tmp_path/'photos', 3), progress=plain)
    photos, text = ws.table('images'), ws.table('prompts').set_index('prompt_id').prompt
    how = 'm', (40, 56), 'dpm', 2, 5.
    jobs = [image_job(p, text[p], seed_of(p, k), *how) for p in photos.prompt_id for k in range(8)]
    mine, theirs = ([j['image_id'] for j in jobs if j['prompt_id'] == p] for p in photos.prompt_id[:2])
    drawn, followed = [], []
    def remove(n): forget(ws, photos.image_id[n], app=False, progress=quiet)
    def make(part):
        if not drawn: remove(0)
        drawn.extend(j['image_id'] for j in part)
        return [draw_person([7, j['seed']]).pil() for j in part]
    def follow(done, rows, pictures):
        assert [j['image_id'] for j in done] == [r['image_id'] for r in rows] and len(rows) == len(pictures)
        followed.extend(r['image_id'] for r in rows)
    run_jobs(ws, None, jobs, 'generated', 4, make=make, follow=follow, progress=quiet)
    assert len(set(drawn) & set(mine)) == 4                                    # of the others nothing was even drawn
    assert sorted(followed) == sorted(ws.table('images').query("domain == 'generated'").image_id)
    assert set(followed) == {j['image_id'] for j in jobs} - set(mine)
    assert {f.stem for f in (ws.root/'images'/'generated').rglob('*.png')} == set(followed)

    judged = []
    def judge(rows, pictures):
        if not judged: remove(1)
        judged.extend(rows.image_id)
        return [dict(image_id=i, scorer='x', scorer_version='1', score=1.) for i in rows.image_id]
    images = ws.table('images').sort_values('prompt_id', key=lambda ids: ids != photos.prompt_id[1], kind='stable')
    map_images(ws, images, 'scores', judge, 's', 4, progress=quiet, which=dict(scorer='x', scorer_version='1'))
    gone = {photos.image_id[1], *theirs}
    assert set(ws.table('scores').image_id) == set(images.image_id) - gone == set(ws.table('images').image_id)
    assert len(set(judged) & gone) == 4 and not [*(ws.root/'cache').rglob('unreadable/*')]
    assert not any(f.stem in gone or f.name.split('.')[0] in gone for f in ws.root.rglob('*'))


def test_what_was_stored_is_followed_though_another_of_its_batch_was_not(tmp_path, monkeypatch):
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    jobs = [image_job('p', 'a person', seed_of('p', k), 'drawn', ws.size, 'none', 1, 1.) for k in range(4)]
    save, followed = ws.save_image, {}
    def nearly_full(image, domain, image_id, **facts):
        if image_id == jobs[1]['image_id']: raise OSError(28, 'No space left on device')
        return save(image, domain, image_id, **facts)
    monkeypatch.setattr(ws, 'save_image', nearly_full)
    def make(part): return [draw_person([7, j['seed']]).pil() for j in part]
    def follow(done, rows, pictures):
        for j, r, im in zip(done, rows, pictures): followed[r['image_id']] = j['image_id'], im
    with pytest.raises(OSError, match='No space'):
        run_jobs(ws, None, jobs, 'generated', 4, make=make, follow=follow, progress=quiet)
    stored = ws.table('images').set_index('image_id').path
    assert set(followed) == set(stored.index) == {j['image_id'] for j in jobs} - {jobs[1]['image_id']}
    assert all(i == of and ws.open_image(stored[i]).tobytes() == im.tobytes() for i, (of, im) in followed.items())


def pictures(ws): # of pool and reconstructions: id -> pixels
    made = ws.table('images').query("domain != 'real'")
    return {r.image_id: np.asarray(ws.open_image(r.path).convert('RGB'), int) for r in made.itertuples()}


def test_an_image_hangs_on_no_batch_and_no_process(tmp_path, random_base):
    begun = create_workspace(tmp_path/'begun', resolution='40x56', steps=3, base_model=str(random_base))
    import_photos(begun, export_photos(tmp_path/'photos', 6, seed=3), progress=plain)
    def again(name): return open_workspace(shutil.copytree(begun.root, tmp_path/name))
    found = []
    for batch in (1, 7, 32):
        ws = again(f'by-{batch}')
        generate_pool(ws, 3, batch=batch, progress=quiet)
        reconstruct(ws, batch=batch, progress=quiet)
        found.append(pictures(ws))
    ws = again('by-three')
    command = [sys.executable, '-m', 'hgdpo_curate', 'pool', '--workspace', str(ws.root), '--n', '3', '--batch', '2']
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [p.wait() for p in running] == [0, 0, 0]
    reconstruct(ws, batch=2, progress=quiet)
    first, *others = *found, pictures(ws)
    assert len(first) >= 6*.8*3 and len(ws.table('images', history=True)) == len(ws.table('images'))
    for other in others:
        assert other.keys() == first.keys()
        assert max(np.abs(other[i] - first[i]).max() for i in first) <= 1                  # as a CPU rounds


def test_millions_of_jobs_are_never_in_memory(tmp_path, monkeypatch):
    import tracemalloc
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    def each(): return (image_job('p', 'a person', k, 'drawn', ws.size, 'none', 1, 1.) for k in range(20_000))
    def make(part): raise KeyboardInterrupt
    tracemalloc.start()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(ws, None, Jobs(each), 'generated', 16, make=make, progress=quiet)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20_000*300                                                             # a list of them takes 635 each
