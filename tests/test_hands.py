"""Hands and feet by mediapipe's real networks, on photographs of real people; skipped where either is not there."""
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
from conftest import quiet, ROOT
from PIL import Image

from hgdpo_curate import create_workspace, flag_images, import_photos
from hgdpo_curate.files import UserError
from hgdpo_curate.judge.detectors import load_detector
from hgdpo_curate.judge.rules import apply_rules, Detections

sys.path.insert(0, str(ROOT/'benchmarks'))
import hands as sweep  # noqa: E402 the sweep of all photographs; here of 60


@pytest.fixture(scope='session')
def networks(test_data):
    "The folder with both .task files."
    pytest.importorskip('mediapipe', reason='mediapipe is not installed; pip install "hgdpo_curate[hands]"')
    from hgdpo_curate.doctor import CHECKS
    good, state, remedy = CHECKS['hands']()
    if not good: pytest.skip(f'{state}; {remedy}')
    for kind in ('hand', 'pose'):
        file = test_data/'models'/f'{kind}_landmarker.task'
        if not file.is_file(): pytest.skip(f'no {file}')
    return test_data/'models'


@pytest.fixture(scope='session')
def detector(networks): return load_detector('hands', networks)


@pytest.fixture(scope='session')
def looked(detector, test_data, tmp_path_factory):
    "60 photographs, 6 of them scenes, and what the detector saw in them."
    files = sweep.photographs(test_data)
    street, scenes = ([f for f in files if f.parent.name == of] for of in ('street', 'scenes'))
    files = street[::len(street)//54][:54] + scenes[::len(scenes)//6][:6]
    folder = tmp_path_factory.mktemp('hands')
    seen = sweep.look_at_photographs(detector, files, folder/'photographs.jsonl')
    return files, seen, folder


def test_few_hands_of_real_people_are_called_bad(looked):
    rows = sweep.alarms(looked[1])
    hands, wrong = int(rows.hands.sum()), int((rows.hands == 0).sum())
    print(f'{wrong} false alarms about {hands} hands of {len(looked[1])} photographs')
    assert hands > 60 and wrong/hands <= .1


def test_an_interrupted_sweep_goes_on(looked):
    files, seen, folder = looked
    lines = (folder/'photographs.jsonl').read_text()
    assert len(lines.splitlines()) == 60
    (folder/'cut.jsonl').write_text(lines[:-20])                         # killed while it wrote the last line
    class Counts:
        calls = 0
        def detect(self, images):
            self.calls += 1
            return [seen[files[-1].name]['items']]
    counts = Counts()
    again = sweep.look_at_photographs(counts, files, folder/'cut.jsonl')
    assert counts.calls == 1 and again.keys() == seen.keys()


def test_faults_made_on_purpose_are_found_or_not(looked, detector):
    "A mirrored hand is mostly found; a finger painted out is not, and no rule may claim that."
    files, seen, folder = looked
    faults = sweep.look_at_faults(detector, files, seen, folder/'faults.jsonl', 6)
    found = sweep.hits(faults, seen).groupby('kind').hit.mean()
    print(found.to_dict())
    assert len(faults) == 6*len(sweep.HAND_FAULTS)
    assert found['hand mirrored'] >= .25 and found['finger painted out'] <= .5


def test_spoiling_leaves_the_photograph_as_it_is(looked):
    files, seen, _ = looked
    file = next(f for f in files if sweep.best_hand(seen[f.name]))
    _, points, elbow, trunk = sweep.best_hand(seen[file.name])
    pixels = np.asarray(Image.open(file).convert('RGB'))
    before = pixels.copy()
    for kind in sweep.HAND_FAULTS:
        spoiled = sweep.spoil_hand(pixels, points, kind, elbow, trunk)
        assert (pixels == before).all() and 0 < (spoiled != pixels).any(-1).mean() < .2, kind


def test_what_is_seen_lies_on_the_person(looked, test_data):
    import json
    lines = (test_data/'photos'/'street'/'metadata.jsonl').read_text().splitlines()
    boxes = {r['file_name']: r['person_box'] for r in map(json.loads, lines)}
    street = {k: r for k, r in looked[1].items() if r['of'] == 'street'}
    inside = []
    for name, row in street.items():
        x, y, right, bottom = boxes[name]
        people = [d for d in row['items'] if d['kind'] == 'person']
        assert people, name
        joints = np.array(people[0]['keypoints'])[:, :2]
        inside.append(((joints > [x - 30, y - 30]) & (joints < [right + 30, bottom + 30])).all(1).mean())
        assert {d['side'] for d in row['items'] if d['kind'] == 'foot'} <= {'left', 'right'}
    assert np.mean(inside) > .95
    hands = [d for r in street.values() for d in r['items'] if d['kind'] == 'hand' and d['keypoints']]
    assert all(np.shape(d['keypoints']) == (21, 3) for d in hands) and len(hands) > 50


def test_nothing_is_proposed_where_no_hand_is_in_sight(looked, detector, test_data):
    files, seen, _ = looked
    for file in files[:6]:
        people = [d for d in seen[file.name]['items'] if d['kind'] == 'person']
        shoulders = min(people[0]['keypoints'][i][1] for i in (11, 12))
        im = Image.open(file).convert('RGB')
        head = im.crop((0, 0, im.width, round(shoulders) + 20))
        items = detector.detect([head])[0]
        proposed = apply_rules(Detections('hands', head.size, items), detector.rules)
        assert not {p['flag'] for p in proposed} & {'bad_hand', 'bad_foot', 'extra_limb'}, file


def test_a_picture_without_a_person_and_one_of_1_to_5(detector, looked):
    empty = Image.new('RGB', (300, 300), '#87a')
    assert detector.detect([empty]) == [[]]
    assert [p['flag'] for p in apply_rules(Detections('hands', empty.size, []), detector.rules)] == ['no_person']
    person = Image.open(looked[0][3]).convert('RGB')
    wide = Image.new('RGB', (person.height*5, person.height), '#87a')
    wide.paste(person, (person.height*2, 0))
    for im in (wide, wide.rotate(90, expand=True)): assert isinstance(detector.detect([im])[0], list)


def test_flags_of_photographs_with_part_and_side(networks, looked, tmp_path):
    import shutil
    from hgdpo_curate.judge.hands import hand_figures, part_crops, worst_parts
    folder = tmp_path/'photos'
    folder.mkdir()
    for f in looked[0][:5]:
        shutil.copy(f, folder)
        (folder/f'{f.stem}.txt').write_text('a person in the street')
    ws = create_workspace(tmp_path/'ws', resolution='512x768')
    import_photos(ws, folder, progress=lambda items, **k: items)
    flag_images(ws, 'hands', networks, ('real',), progress=quiet)
    det, flags = ws.table('detections'), ws.table('flags')
    assert {'person', 'hand', 'foot'} <= set(det.kind) and det[det.kind == 'hand'].joint.notna().all()
    hands = flags[flags.flag == 'bad_hand']
    assert set(hands.part) <= {'hand'} and set(hands.side) <= {'left', 'right'} and hands.reason.str.len().gt(10).all()
    worst = worst_parts(ws)
    assert worst.confidence.is_monotonic_increasing and all(c.size == (96, 96) for c in part_crops(ws, worst))
    figures = hand_figures(ws, ws.table('images').image_id)
    assert len(figures) == 5 and figures.hand_confidence.dropna().between(0, 1).all()
    flag_images(ws, 'hands', networks, ('real',), progress=quiet)
    assert len(ws.table('detections', history=True)) == len(det)            # nothing was looked at twice


def test_one_network_alone(networks, looked):
    im = Image.open(looked[0][9]).convert('RGB')
    pose, = load_detector('mediapipe', networks/'pose_landmarker.task').detect([im])
    assert [d['kind'] for d in pose] == ['person'] and len(pose[0]['keypoints']) == 17
    both = [d for d in looked[1][looked[0][9].name]['items'] if d['kind'] == 'person'][0]['keypoints']
    assert np.allclose(pose[0]['keypoints'][0][:2], both[0][:2], atol=3)                  # the nose, by either detector
    hand, = load_detector('mediapipe', networks/'hand_landmarker.task').detect([im])
    assert all(d['kind'] == 'hand' and len(d['keypoints']) == 21 for d in hand)


def test_another_task_and_missing_files_are_refused_in_a_sentence(networks, tmp_path):
    import shutil
    import zipfile
    with pytest.raises(UserError, match='hand_landmarker.task') as missing: load_detector('hands', tmp_path)
    for words in ('--detector_path', 'pose_landmarker.task', 'ai.google.dev'): assert words in str(missing.value)
    shutil.copy(networks/'pose_landmarker.task', tmp_path/'hand_landmarker.task')
    with pytest.raises(UserError, match='is not a mediapipe task for hands'):
        load_detector('mediapipe', tmp_path/'hand_landmarker.task')
    faces = tmp_path/'face_landmarker.task'                                    # a bundle of a third kind, whole
    with zipfile.ZipFile(networks/'hand_landmarker.task') as whole, zipfile.ZipFile(faces, 'w') as out:
        for name in whole.namelist(): out.writestr(name.replace('hand', 'face'), whole.read(name))
    with pytest.raises(UserError, match='face_landmarker.task is not a mediapipe task for poses'):
        load_detector('mediapipe', faces)
    shutil.copy(faces, tmp_path/'hand_landmarker.task')
    with pytest.raises(UserError, match='is not a mediapipe task for hands'):
        load_detector('mediapipe', tmp_path/'hand_landmarker.task')
    (tmp_path/'pose_landmarker.task').write_bytes(b'nonsense')
    with pytest.raises(UserError, match='is not a mediapipe task for poses'): load_detector('hands', tmp_path)


def test_the_interpreter_ends_quietly(networks):
    code = f'from hgdpo_curate.judge.detectors import load_detector; d = load_detector("hands", {str(networks)!r})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and 'Traceback' not in done.stderr


def test_a_process_forked_after_hands_were_looked_at_ends(detector):
    child = multiprocessing.get_context('fork').Process(target=len, args=((),))
    child.start()
    child.join(60)
    ended = child.exitcode
    child.kill()
    assert ended == 0
