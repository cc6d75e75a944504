"""Engines: the processes of `accelerate launch`, and the machines of a Ray cluster, one of which is lost."""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from drawn_pool import BATCH, draw_pool, JOBS
from test_killed_pool import images_of

from hgdpo_curate import create_workspace, import_photos, UserError
from hgdpo_curate.cli import main, VERBS
from hgdpo_curate.engines import _Worker, work_on_ray
from hgdpo_curate.pipelines import assets_folder
from hgdpo_curate.toy.drawings import export_photos


def test_accelerate_divides_a_pool_and_only_the_first_process_prints(tmp_path, random_base):
    ws = create_workspace(tmp_path/'ws', resolution='40x56', steps=2, guidance=2.)
    import_photos(ws, export_photos(tmp_path/'photos', 6, seed=3), progress=lambda items, **k: items)
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '-m', 'hgdpo_curate']
    words = f'pool --n 8 --batch 2 --workspace {ws.root} --pretrained_model_name_or_path {random_base}'.split()
    done = subprocess.run([*launch, *words], cwd=ROOT, env=os.environ | dict(OMP_NUM_THREADS='1'), capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    prompts = len(ws.table('prompts').query("fold == 'train'"))
    images = ws.table('images', history=True).query("domain == 'generated'")
    assert len(images) == images.image_id.nunique() == 8*prompts
    assert done.stdout.count('made') == 1 and done.stderr.count('images of 40 x 56 to make') == 1


def seen_and_proposed(ws): # image and what was seen, image and what is proposed; each row that was ever written
    tables = [ws.table(name, history=True).fillna('') for name in ('detections', 'flags')]
    return [sorted(zip(df.image_id, *(df[c] for c in by))) for df, by in zip(tables, (['kind'], ['flag', 'part']))]


def test_accelerate_divides_detections_and_the_first_process_applies_the_rules(finished, copy_of, tmp_path):
    alone, ws = copy_of(finished, 'alone'), copy_of(finished, 'ws')
    assert main(['flag', '--workspace', str(alone.root)]) == 0
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '-m', 'hgdpo_curate']
    done = subprocess.run([*launch, 'flag', '--workspace', str(ws.root)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('images to judge') == 1 and done.stdout.count('flag  images') == 1
    assert seen_and_proposed(ws) == seen_and_proposed(alone) and all(seen_and_proposed(ws))


def test_another_process_than_the_first_detects_and_leaves_the_rest_to_it(finished, copy_of, monkeypatch, capsys):
    ws, at = copy_of(finished), ['flag', '--workspace']
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    assert main([*at, str(ws.root)]) == main([*at, str(ws.root), '--detector', 'learned']) == 0
    assert [len(rows) > 0 for rows in seen_and_proposed(ws)] == [True, False] and capsys.readouterr() == ('', '')
    monkeypatch.setenv('RANK', '0')
    seen = seen_and_proposed(ws)[0]
    assert main([*at, str(ws.root)]) == 0
    assert seen_and_proposed(ws)[0] == seen and seen_and_proposed(ws)[1] and 'to judge' not in capsys.readouterr().err
    assert main([*at, str(ws.root), '--detector', 'learned']) == 1           # nothing was decided on yet
    assert 'so the first of the 2 processes does that alone' in capsys.readouterr().err


def test_verbs_that_cannot_be_divided_run_in_the_first_process_alone(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(['status', '--workspace', str(tmp_path)]) == 0 and capsys.readouterr().out == ''
    assert main(['recon', '--workspace', str(tmp_path)]) == 1 and 'is not a workspace' in capsys.readouterr().err
    assert {n for n, v in VERBS.items() if v.fills} == {'pool', 'recon', 'redraw', 'score', 'flag'}
    assert {n for n, v in VERBS.items() if v.everywhere} == {'train', 'sft'}


def test_flags_of_ray_need_ray(monkeypatch, capsys, tmp_path):
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    at = ['pool', '--workspace', str(ws.root)]
    assert main([*at, '--workers', '2']) == 2 and 'need --engine ray' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert main([*at, '--engine', 'ray']) == 1 and 'pip install "hgdpo_curate[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize('address, code, words', [
    ('127.0.0.1:9', 1, 'There is no Ray cluster at 127.0.0.1:9; start one with: RAY_USAGE_STATS_ENABLED=0 ray start '
     '--head --include-dashboard=false --port 6379, and give'),
    ('ray://127.0.0.1:9', 1, 'There is no Ray cluster at ray://127.0.0.1:9'),
    ('gpu1', 2, 'gpu1 is not the address of a Ray cluster; give --ray_address HOST:PORT'),
])
def test_an_address_where_nobody_listens_is_one_sentence_at_once(tmp_path, capsys, address, code, words):
    pytest.importorskip('ray', reason='Ray is not installed: pip install "hgdpo_curate[ray]"')
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    began = time.monotonic()
    assert main(['pool', '--workspace', str(ws.root), '--engine', 'ray', '--ray_address', address]) == code
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1 and time.monotonic() - began < 30


def a_node(): # Ray waits 15 seconds for its agents to choose ports, which is little on a busy machine
    agents = ('metrics_agent_port', 'metrics_export_port', 'dashboard_agent_listen_port', 'runtime_env_agent_port')
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in agents]
        ports = {name: s.getsockname()[1] for name, s in zip(agents, sockets)}
    return dict(
        include_dashboard=False,
        object_store_memory=80*2**20,
        num_cpus=2,
        num_gpus=0,
        **ports,
    )


@pytest.fixture(scope='module')
def cluster():
    "Three nodes on this machine, with room for a worker that is started again, and a head that works on nothing."
    pytest.importorskip('ray', reason='Ray is not installed: pip install "hgdpo_curate[ray]"')
    os.environ |= dict(RAY_USAGE_STATS_ENABLED='0', PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT/"tests"}')
    from ray.cluster_utils import Cluster
    started = Cluster(initialize_head=True, head_node_args=a_node() | dict(num_cpus=0))
    started.workers = [started.add_node(**a_node()) for _ in range(3)]
    yield started
    started.shutdown()


def test_a_cluster_that_loses_a_machine_makes_what_one_process_makes(tmp_path, cluster):
    alone, ws = (create_workspace(tmp_path/name, resolution='40x56') for name in ('alone', 'ws'))
    draw_pool(alone.root, pause=0)
    def lose_one():
        while len(ws.table('images')) < JOBS//4: time.sleep(.1)
        cluster.remove_node(cluster.workers.pop(), allow_graceful=False)
    losing = threading.Thread(target=lose_one, daemon=True)
    losing.start()
    given = dict(workspace=str(ws.root), device='cpu')
    made = work_on_ray('drawn_pool.draw_pool', given, 'images', cluster.address, workers=3)
    losing.join()
    assert made == JOBS and images_of(ws) == images_of(alone)
    twice = len(ws.table('images', history=True)) - JOBS
    assert twice <= BATCH                                # at most what was saved as its machine was lost
    assert not list((ws.root/'cache'/'leases').glob('*.[0-9]*'))


def test_workers_send_no_reports_on_machines_where_nobody_said_so(tmp_path, monkeypatch):
    names = ('RAY_USAGE_STATS_ENABLED', 'HF_HUB_DISABLE_TELEMETRY', 'FIFTYONE_DO_NOT_TRACK', 'DO_NOT_TRACK')
    for name in names: monkeypatch.delenv(name, raising=False)
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    assert _Worker().work('drawn_pool.score_by_brightness', dict(workspace=str(ws.root))) == ([], [])
    assert [os.environ.get(name) for name in names] == ['0', '1', 'true', '1']


def on_cluster(cluster, verb, ws, *words): # exit code
    at = ['--workspace', str(ws.root), '--engine', 'ray', '--ray_address', cluster.address, '--workers', '1']
    return main([verb, *at, *([] if verb == 'flag' else ['--device', 'cpu']), *words])    # detectors take what is there


def test_weights_in_a_folder_named_from_here_are_found_by_workers(tmp_path, cluster, finished, copy_of, monkeypatch):
    ws = copy_of(finished)
    shutil.copytree(assets_folder(), tmp_path/'weights')
    shutil.rmtree(ws.root/'tables'/'scores')
    monkeypatch.chdir(tmp_path)                          # workers stay in the folder that the cluster was started in
    assert on_cluster(cluster, 'score', ws, '--scorer_path', 'weights') == 0
    assert len(ws.table('scores')) == len(ws.table('images')) > 0


def test_what_a_worker_warns_of_and_how_far_all_are_is_shown(tmp_path, cluster, random_base, capsys):
    ws = create_workspace(tmp_path/'ws', resolution='40x56', steps=2, guidance=2.)
    import_photos(ws, export_photos(tmp_path/'photos', 2, seed=3), progress=lambda items, **k: items)
    given = dict(workspace=str(ws.root), base=str(random_base), n=4, device='cpu', score='faulty')
    with pytest.warns(UserWarning, match=r'^worker 1: faulty stopped scoring \(ValueError: no such layer\)'):
        made = work_on_ray('drawn_pool.pool_with_a_faulty_scorer', given, 'images', cluster.address, workers=1)
    said = capsys.readouterr().err
    assert made == len(ws.table('images').query("domain == 'generated'")) > 0
    assert 'worker 1: 0 images scored by faulty.' in said and f'new images: {made}it' in said


def test_scores_by_a_second_scorer_are_counted_too(cluster, finished, copy_of):
    ws = copy_of(finished)
    given, images = dict(workspace=str(ws.root), device='cpu'), len(ws.table('images'))
    assert len(ws.table('scores')) == images             # by the first one
    assert work_on_ray('drawn_pool.score_by_brightness', given, 'scores', cluster.address, workers=1) == images


def test_machines_look_for_faults_and_the_rules_are_applied_here(cluster, finished, copy_of, capsys):
    alone, shared = copy_of(finished), copy_of(finished, 'shared')
    assert main(['flag', '--workspace', str(alone.root)]) == 0
    assert on_cluster(cluster, 'flag', shared) == 0
    def of(ws, table): return ws.table(table).drop(columns='written_at').sort_values('image_id').to_dict('records')
    assert len(shared.table('detections')) and len(shared.table('flags'))
    for table in ('detections', 'flags'): assert str(of(shared, table)) == str(of(alone, table))
    assert on_cluster(cluster, 'flag', shared, '--detector', 'learned') == 2
    assert 'leave out --engine' in capsys.readouterr().err


def test_a_cluster_without_gpus_or_a_workspace_that_it_does_not_see_is_one_sentence(tmp_path, cluster):
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    given = dict(workspace=str(ws.root))
    with pytest.raises(UserError, match='has no GPU; give --device cpu'):
        work_on_ray('drawn_pool.draw_pool', given, 'images', cluster.address)
    Path(ws.root/'workspace.toml').rename(tmp_path/'hidden')
    with pytest.raises(UserError, match='does not see'): _Worker().work('drawn_pool.draw_pool', given)


def test_a_cluster_of_another_version_is_one_sentence_and_the_next_attempt_connects(tmp_path, cluster):
    """The local cluster's own record of its version is changed; what reads it and compares is Ray's code."""
    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import GcsClient
    ws, gcs = create_workspace(tmp_path/'ws', resolution='40x56'), GcsClient(address=cluster.address)
    recorded = gcs.internal_kv_get(CLUSTER_METADATA_KEY, KV_NAMESPACE_CLUSTER)
    def record(said): gcs.internal_kv_put(CLUSTER_METADATA_KEY, said, True, KV_NAMESPACE_CLUSTER)
    given = dict(workspace=str(ws.root))
    try:
        record(json.dumps(json.loads(recorded) | dict(ray_version='2.9.3')).encode())
        with pytest.raises(UserError, match='2.9.3.*must run the same versions of Ray and Python') as e:
            work_on_ray('drawn_pool.draw_pool', given, 'images', cluster.address)
    finally: record(recorded)
    assert len(str(e.value).splitlines()) == 1 and ray.__version__ in str(e.value)
    with pytest.raises(UserError, match='has no GPU'):
        work_on_ray('drawn_pool.draw_pool', given, 'images', cluster.address)
