"""Scorers, extractors and recognisers on tiny random weights in the published layout; against published formulas.

And what is said when weights are missing.
"""
import json
import shutil

import numpy as np
import pytest

from hgdpo_curate import UserError, load_scorer


def picture(seed=0, size=(40, 56)):
    from PIL import Image
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


@pytest.fixture(scope='module')
def clip_folder(tmp_path_factory):
    "A CLIP with random weights and vectors of 768 numbers, as ViT-L/14 gives them."
    from hgdpo_curate.judge.clip import random_clip
    return random_clip(tmp_path_factory.mktemp('clip'), width=768)


def fixed_clip(scorer, images, texts):
    "Puts known embeddings in place of the two towers."
    scorer.clip.images, scorer.clip.texts, scorer.clip.scale = (
        lambda _: np.array(images),
        lambda _: np.array(texts),
        100.0,
    )
    return scorer


def test_pickscore_is_the_published_formula_on_fixed_embeddings(clip_folder):
    s = fixed_clip(load_scorer('pickscore', clip_folder, 'cpu'), [[3., 4.], [0., 5.]], [[1., 0.], [0., .1]])
    assert np.allclose(s.score([None]*2, ['', '']), [100*.6, 100])           # exp(logit_scale) * cosine


@pytest.mark.parametrize('name,file', [('hps', 'HPS_v2.1_compressed.pt'), ('hps_v2', 'HPS_v2_compressed.pt')])
def test_hps_is_the_cosine_of_open_clip_features(tmp_path, name, file):
    import open_clip
    import torch
    from conftest import tiny_open_clip
    cfg = tiny_open_clip(32, 8)
    net = open_clip.CLIP(**cfg).eval()
    torch.save(dict(state_dict=net.state_dict()), tmp_path/file)
    (tmp_path/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg)))
    s = load_scorer(name, tmp_path, 'cpu')
    assert s.name == name and s.version.startswith(file.removesuffix('.pt') + '/')
    # the authors' code: normalised features, their product, the diagonal
    with torch.no_grad():
        v = net.encode_image(torch.stack([s.prepare(picture(i)) for i in range(2)]), normalize=True)
        t = net.encode_text(open_clip.tokenize(['a', 'b']), normalize=True)
    assert np.allclose(s.score([picture(0), picture(1)], ['a', 'b']), torch.diagonal(v @ t.T).numpy(), atol=1e-5)


def test_imagereward_gives_what_its_authors_code_gave_on_the_same_random_weights(tmp_path):
    "The three numbers come from THUDM/ImageReward's own BLIP with this checkpoint (seed 0), run once beside ours."
    from hgdpo_curate.toy.drawings import draw_person
    from hgdpo_curate.judge.imagereward import random_imagereward
    s = load_scorer('imagereward', random_imagereward(tmp_path), 'cpu')
    got = s.score(
        [draw_person([5, i]).pil() for i in range(3)], ['a photo of a person red top', 'green', 'a person of photo']
    )
    assert np.allclose(got, [23.113882, -1.752555, 10.632060], atol=2e-2)


def test_the_real_aesthetic_head_loads_and_gives_known_numbers(test_data, clip_folder, tmp_path):
    import torch
    from hgdpo_curate.judge.clip import aesthetic_head
    from hgdpo_curate.weights import load_state
    file = test_data/'models'/'sac+logos+ava1-l14-linearMSE.pth'
    head, state = aesthetic_head(file), {k: v.double().numpy() for k, v in load_state(file).items()}
    # nothing, the first direction, all directions alike
    x = np.zeros((3, 768))
    x[1, 0] = 1
    x[2] = 768**-.5
    y = x
    for i in (0, 2, 4, 6, 7): y = y @ state[f'layers.{i}.weight'].T + state[f'layers.{i}.bias']
    with torch.no_grad(): got = head(torch.from_numpy(x).float()).numpy()
    assert got.shape == (3, 1) and np.allclose(got, y, atol=1e-3)
    for f in clip_folder.iterdir(): (tmp_path/f.name).write_bytes(f.read_bytes())
    (tmp_path/file.name).write_bytes(file.read_bytes())
    s = load_scorer('aesthetic', tmp_path, 'cpu')
    a, b = s.score([picture(0), picture(1)])
    assert np.isfinite([a, b]).all() and a != b and np.isclose(s.score([picture(0)])[0], a, atol=1e-3)


def test_clipiqa_is_a_softmax_of_two_opposite_prompts(clip_folder):
    s = load_scorer('clipiqa_sharpness', clip_folder, 'cpu')
    v = s.clip.images([picture(0)])[0]
    logits = s.clip.scale*np.array([v @ t/np.linalg.norm(v)/np.linalg.norm(t) for t in (s.good, s.bad)])
    assert np.isclose(s.score([picture(0)])[0], np.exp(logits[0])/np.exp(logits).sum(), atol=1e-5)


def test_of_a_cached_model_only_the_pinned_commit_is_taken(tmp_path):
    """The hub's cache as it lies on a disk, with a random CLIP: the newest commit there is not the pinned one.

    The real weights were never fetched here.
    """
    import os
    import subprocess
    import sys
    from hgdpo_curate.judge.clip import random_clip
    from hgdpo_curate.image_models import WEIGHTS
    pinned, repo = WEIGHTS['clip'].revision, tmp_path/'hub'/'models--openai--clip-vit-large-patch14'
    random_clip(repo/'snapshots'/('0'*40))
    (repo/'refs').mkdir()
    (repo/'refs'/'main').write_text('0'*40)
    code = "from hgdpo_curate.judge.scores import load_scorer; print(load_scorer('clip').version)"
    def score():
        return subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            env=os.environ | dict(HF_HUB_CACHE=str(tmp_path / 'hub'), HF_HUB_OFFLINE='1'),
        )
    assert f'--revision {pinned}' in score().stderr
    random_clip(repo/'snapshots'/pinned)
    assert score().stdout.strip() == f'openai/clip-vit-large-patch14@{pinned[:8]}'


def test_missing_weights_name_the_file_and_where_to_put_it(tmp_path):
    for name, file in (
        ('hps', 'HPS_v2.1_compressed.pt'),
        ('hps_v2', 'HPS_v2_compressed.pt'),
        ('imagereward', 'ImageReward.pt'),
        ('aesthetic', 'sac+logos+ava1-l14-linearMSE.pth'),
        ('clip', 'model.safetensors'),
        ('pickscore', 'model.safetensors'),
        ('clipiqa_quality', 'model.safetensors'),
    ):
        for path in (None, tmp_path):
            with pytest.raises(UserError) as e: load_scorer(name, path)
            assert file in str(e.value) and '--scorer_path FOLDER' in str(e.value), name


def test_weights_that_hold_code_or_other_names_are_refused(tmp_path):
    import torch
    from hgdpo_curate.judge.imagereward import random_imagereward
    random_imagereward(tmp_path)
    state = torch.load(tmp_path/'ImageReward.pt', weights_only=True)
    torch.save({k: v for k, v in state.items() if 'crossattention' not in k}, tmp_path/'ImageReward.pt')
    with pytest.raises(UserError, match='does not fit.*crossattention'): load_scorer('imagereward', tmp_path, 'cpu')

    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'touched'), 'w'))
    torch.save(Evil(), tmp_path/'HPS_v2.1_compressed.pt')
    with pytest.raises(UserError, match='cannot be read as weights'):
        from hgdpo_curate.weights import load_state
        load_state(tmp_path/'HPS_v2.1_compressed.pt')
    assert not (tmp_path/'touched').exists()


def test_inception_features_come_from_a_file_in_torch_fidelitys_layout(tmp_path, monkeypatch):
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Net
    from hgdpo_curate.evaluate.features import Inception
    with pytest.raises(UserError, match='weights-inception-2015-12-05-6726825d.pth.*--extractor_path'):
        Inception(tmp_path)
    file = tmp_path/'weights-inception-2015-12-05-6726825d.pth'
    torch.save({}, file)
    with pytest.raises(UserError, match='does not fit InceptionV3'): Inception(file)
    with monkeypatch.context() as m:
        # to get the random weights that are saved next
        m.setattr(Net, 'load_state_dict', lambda self, state: None)
        torch.save(Net('x', ['2048'], str(file)).state_dict(), file)
    f = Inception(tmp_path, 'cpu').extract([picture(0, (32, 48)), picture(1, (32, 48))])
    assert f.shape == (2, 2048) and np.isfinite(f).all() and (f[0] != f[1]).any()


def recogniser_onnx(path):
    """A recogniser in the layout of ArcFace and SFace: 112 x 112 pixels in, a vector out.

    Here the mean colours of 7 x 7 cells.
    """
    from onnx import TensorProto as T, helper as h, save
    nodes = [
        h.make_node(
            'AveragePool',
            ['data'],
            ['p'],
            kernel_shape=[16, 16],
            strides=[16, 16],
        ),
        h.make_node('Flatten', ['p'], ['fc1']),
    ]
    graph = h.make_graph(
        nodes,
        'g',
        [h.make_tensor_value_info('data', T.FLOAT, [1, 3, 112, 112])],
        [h.make_tensor_value_info('fc1', T.FLOAT, [1, 147])],
    )
    save(h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8), str(path))


def test_sface_compares_the_largest_face_that_yunet_finds(test_data, tmp_path):
    import shutil
    from PIL import Image
    from hgdpo_curate.judge.faces import face_distance, load_recogniser
    recogniser_onnx(tmp_path/'face_recognition_sface_2021dec.onnx')
    with pytest.raises(UserError, match=r'\*yunet\*.onnx'): load_recogniser('sface', tmp_path)
    shutil.copy(test_data/'models'/'yunet_n_640_640.onnx', tmp_path)
    sface = load_recogniser('sface', tmp_path)
    people = [Image.open(f).convert('RGB') for f in sorted((test_data/'photos'/'street').glob('*.jpg'))[:2]]
    v = sface.embed([*people, people[0].resize([round(1.2*n) for n in people[0].size]), Image.new('RGB', (200, 200))])
    d = face_distance(v[[0, 0, 0]], v[[2, 1, 3]])
    assert v.shape == (4, 147) and d[0] < d[1] and np.isnan(d[2])            # itself, larger; somebody else; nobody


def test_arcface_asks_for_its_licence_once_and_finds_the_recogniser_in_the_pack(tmp_path):
    from PIL import Image
    from test_detectors import tiny_scrfd
    from hgdpo_curate import create_workspace
    from hgdpo_curate.judge.faces import load_recogniser
    folder = tmp_path/'models'/'tiny'
    folder.mkdir(parents=True)
    tiny_scrfd(folder/'det_tiny.onnx')
    ws = create_workspace(tmp_path/'ws', resolution='64')
    with pytest.raises(UserError, match='non-commercial'): load_recogniser('arcface', folder, ws)
    with pytest.raises(UserError, match='contains no recogniser'):
        load_recogniser('arcface', folder, ws, accept_noncommercial=True)
    recogniser_onnx(folder/'w600k_tiny.onnx')
    arc = load_recogniser('arcface', folder, ws)                             # accepted before
    image = Image.new('RGB', (640, 640))
    image.paste('white', (64, 96, 96, 128))
    v = arc.embed([image, Image.new('RGB', (640, 640))])
    assert v.shape == (2, 147) and np.isfinite(v[0]).all() and np.isnan(v[1]).all()


def test_a_scorer_scores_again_only_with_other_weights(finished, copy_of):
    from conftest import Chance, quiet
    from hgdpo_curate import score_images
    ws, n = copy_of(finished), 0
    class Counting(Chance):
        name, version = 'counting', '1'
        def score(self, images, prompts):
            nonlocal n
            n += len(images)
            if n > 8 and stop: raise KeyboardInterrupt
            return super().score(images, prompts)
    stop, total = True, len(ws.table('images'))
    with pytest.raises(KeyboardInterrupt): score_images(ws, Counting(), batch=4, progress=quiet)
    kept, stop = len(ws.table('scores').query("scorer == 'counting'")), False
    assert (
        kept == 8
        and score_images(ws, Counting(), progress=quiet) == total - 8
        and score_images(ws, Counting(), progress=quiet) == 0
    )
    Counting.version = '2'
    assert score_images(ws, Counting(), progress=quiet) == total


def test_features_that_nobody_named_are_never_downloaded(tmp_path, monkeypatch):
    import huggingface_hub
    from hgdpo_curate import create_workspace
    from hgdpo_curate.evaluate.features import load_extractor
    asked = []
    def record(hub, local_files_only, **k):
        asked.append(local_files_only)
        raise OSError
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', record)
    assert load_extractor(create_workspace(tmp_path/'ws', resolution='16'), 'auto') is None and asked == [True]
    with pytest.raises(UserError, match='--extractor_path'):
        load_extractor(create_workspace(tmp_path/'ws', resolution='16'), 'clip')
    # named, the cache is asked first, then the hub
    assert asked == [True, True, False]


def test_inception_comes_before_a_small_evaluator_but_not_for_drawings(finished, copy_of, monkeypatch):
    from pathlib import Path
    from hgdpo_curate.evaluate import features
    from hgdpo_curate.pipelines import assets_folder
    # its own loading is tested above
    monkeypatch.setattr(features, 'Inception', lambda path, device: 'inception')
    monkeypatch.setattr(features, 'hub_inception', lambda: Path('weights.pth'))
    ws = copy_of(finished)
    assert features.load_extractor(ws).name == 'evaluator'
    ws.append('photo_facts', ws.table('photo_facts').drop(columns='written_at').assign(source='a camera'))
    shutil.copytree(assets_folder(), ws.root/'tiny')
    assert features.load_extractor(ws) == 'inception'
    monkeypatch.setattr(features, 'hub_inception', lambda: None)
    assert features.load_extractor(ws).name == 'evaluator'


@pytest.fixture
def no_rows_of_ones_own():
    "What a test registers is gone after it."
    from hgdpo_curate import registry
    yield
    for rows in registry._REGISTERED.values(): rows.clear()


@pytest.fixture
def few_photos(tmp_path):
    "A workspace of four drawings."
    from conftest import plain
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    import_photos(ws, export_photos(tmp_path/'photos', 4), progress=plain)
    return ws


class Bright:
    version = '1'
    def score(self, images, prompts): return [np.asarray(im, float).mean()/255 for im in images]


class Halves:
    "Sees a person in every picture, with two joints, and an extra face by a coin that always falls the same way."
    version, joints = '1', ['nose', 'left_shoulder']
    def detect(self, images):
        from hgdpo_curate.judge.detections import seen
        person = seen('person', .9, [8, 4, 24, 48], [[20, 10, 1.], [14, 20, 1.]])
        return [[person, seen('extra_face', .9)] for _ in images]


class Corner:
    version = '1'
    def extract(self, images): return [np.asarray(im.resize((2, 2)), float).ravel() for im in images]


def test_every_row_of_the_registry_has_a_class_a_licence_and_words():
    import inspect
    from hgdpo_curate.image_models import OFFERS, ROWS
    from hgdpo_curate.registry import allowed, model_source
    assert len(ROWS) > 20 and {kind for kind, _ in ROWS} == {*OFFERS, 'truth'}
    for place, row in ROWS.items():
        terms = allowed(row)
        assert terms['licence'] not in ('', 'unknown') and terms['stated'], place
        assert terms['commercial'] in (True, False), place
        assert row.measures and row.what, place
        if row.kind == 'truth': continue
        source = model_source(row)
        # a factory says what it gives
        made = source if isinstance(source, type) else source.__annotations__['return']
        assert callable(getattr(made, OFFERS[row.kind], None) or made.propose), place
        # `path` is what --scorer_path and its like become; the small evaluator's place is known
        known = place in {('extractor', 'evaluator'), ('extractor', 'evaluator_layers')}
        assert 'path' in inspect.signature(source).parameters or known, place


def test_the_registry_imports_nothing_heavy_and_help_is_made_of_its_rows():
    import subprocess
    import sys
    code = (
        'import sys\n'
        'from hgdpo_curate.cli import make_parser\n'
        "text = {v: ' '.join(make_parser(v).format_help().split()) for v in ('score', 'flag', 'evaluate')}\n"
        'from hgdpo_curate.registry import REGISTERS\n'
        "for v, register in (('score', 'SCORERS'), ('flag', 'DETECTORS'), ('evaluate', 'RECOGNISERS')):\n"
        "    for name, row in REGISTERS[register].items(): assert f'{name} ({row.measures}' in text[v], (v, name)\n"
        "assert 'non-commercial)' in text['flag'] and '`' not in text['evaluate']\n"
        "heavy = {'torch', 'numpy', 'pandas', 'PIL', 'transformers', 'matplotlib', 'fiftyone'} & set(sys.modules)\n"
        'assert not heavy, heavy'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ones_own_scorer_detector_and_extractor_are_taken_as_the_packages(few_photos, no_rows_of_ones_own):
    from conftest import quiet
    from hgdpo_curate import compare_arms, flag_images, score_images
    from hgdpo_curate import register_detector, register_extractor, register_scorer
    from hgdpo_curate.evaluate.report import provenance_section
    from hgdpo_curate.judge.detections import JOINTS, latest_detections
    ws = few_photos
    register_scorer(
        'bright',
        Bright,
        measures='brightness',
        licence='MIT',
        commercial=True,
    )
    register_detector('halves', Halves(), measures='people', licence='research only')
    register_extractor('corner', Corner, licence='CC0-1.0', commercial=True)
    assert score_images(ws, 'bright', progress=quiet) == 4 and score_images(ws, 'bright', progress=quiet) == 0
    assert set(flag_images(ws, 'halves', progress=quiet).flag) >= {'extra_face'}
    assert len(latest_detections(ws)) == 8 and JOINTS['halves'] == Halves.joints
    rows = ws.table('images')
    compared = compare_arms(
        ws,
        dict(base=rows.head(2), other=rows.tail(2).assign(prompt_id=rows.head(2).prompt_id.tolist())),
        ws.table('prompts'),
        scorers=['bright'],
        extractor='corner',
        detector='halves',
        progress=quiet,
    )
    assert [m['name'] for m in compared.measured_by['extractor']] == ['corner'] and list(compared.scorers) == ['bright']
    page = provenance_section(ws, compared, 'hgdpo evaluate')
    assert all(f'<td>{name}</td>' in page for name in ('bright', 'halves', 'corner')) and 'CC0-1.0' in page


def test_a_card_written_by_another_process_knows_what_was_registered(few_photos, no_rows_of_ones_own):
    from conftest import quiet
    from hgdpo_curate import flag_images, register_detector, register_scorer, registry, score_images
    from hgdpo_curate.document.licences import about
    from hgdpo_curate.judge.detections import JOINTS
    ws = few_photos
    register_scorer(
        'bright',
        Bright,
        measures='brightness',
        licence='MIT',
        commercial=True,
    )
    register_detector('halves', Halves, measures='people', licence='for non-commercial research only')
    score_images(ws, 'bright', progress=quiet)
    before = flag_images(ws, 'halves', progress=quiet)
    for rows in registry._REGISTERED.values(): rows.clear()                    # as another process begins
    del JOINTS['halves']
    assert about('bright')['licence'].startswith('not known')
    assert about('bright', '1', 'scorer', ws) == dict(
        what='brightness',
        licence='MIT',
        commercial='yes',
        stated='the person who registered it',
    )
    assert about('halves', '1', 'detector', ws)['commercial'] == 'no'
    from hgdpo_curate.evaluate.report import _licences
    measured = dict(scorers=[dict(name='bright', version='1')], detectors=[dict(name='halves', version='')])
    assert _licences(ws, measured) == [
        ('scorer', 'bright', '1', 'MIT', 'allowed'),
        ('detector', 'halves', 'none', 'for non-commercial research only', 'not allowed'),
    ]
    from hgdpo_curate.judge.anatomy import propose_flags
    assert propose_flags(ws).equals(before)                                    # its joints are not forgotten


def test_a_package_enters_a_scorer_and_a_detector_by_entry_points(few_photos, tmp_path, monkeypatch):
    import os
    import subprocess
    import sys
    from pathlib import Path
    from conftest import quiet
    from hgdpo_curate import UsageError, flag_images, score_images
    from hgdpo_curate.document.licences import about
    site = tmp_path/'site'
    info = site/'throwaway-1.0.dist-info'
    info.mkdir(parents=True)
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: throwaway\nVersion: 1.0\n')
    (info/'entry_points.txt').write_text(
        '[hgdpo_curate.scorers]\nmine = throwaway_judges:Mine\ntiny = throwaway_judges:Mine\n'
        '[hgdpo_curate.detectors]\nseen_twice = throwaway_judges:Twice\nbroken = throwaway_nowhere:Gone\n'
    )
    (site/'throwaway_judges.py').write_text(
        'class Mine:\n'
        "    version, licence, commercial = '7', 'BSD-3-Clause', True\n"
        '    def score(self, images, prompts): return [float(im.width) for im in images]\n'
        'class Twice:\n'
        "    version = '1'\n"
        "    def detect(self, images): return [[dict(kind='extra_face', confidence=.9, box=None, keypoints=None)]] \\\n"
        '        * len(images)\n'
    )
    with pytest.raises(UsageError, match='no scorer .mine.; choose one of smallscore, pickscore'): load_scorer('mine')
    monkeypatch.syspath_prepend(site)
    with pytest.warns(UserWarning, match="scorer 'tiny' of throwaway is left out"):
        assert score_images(few_photos, 'mine', progress=quiet) == 4
    assert flag_images(few_photos, 'seen_twice', progress=quiet).flag.tolist() == ['extra_face']
    assert load_scorer('smallscore').version != '7' and about('mine', kind='scorer')['licence'] == 'BSD-3-Clause'
    with pytest.raises(UserError, match="detector 'broken' at throwaway_nowhere:Gone cannot be imported"):
        flag_images(few_photos, 'broken')
    root = Path(__file__).resolve().parents[1]
    shown = subprocess.run(
        [sys.executable, '-m', 'hgdpo_curate', 'flag', '--help'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(site), str(root)])),
    )
    assert 'seen_twice (of throwaway)' in ' '.join(shown.stdout.split())


def test_a_name_that_is_taken_or_a_model_that_offers_nothing_is_refused(no_rows_of_ones_own):
    from hgdpo_curate import UsageError, register_detector, register_scorer
    with pytest.raises(UsageError, match='is one of the package; choose another name'): register_scorer('hps', Bright)
    with pytest.raises(UsageError, match='letters, digits'): register_scorer('a,b', Bright)
    with pytest.raises(UsageError, match='has no `detect`'): register_detector('eyes', 7)
    register_scorer('light', Bright)
    with pytest.warns(UserWarning, match="scorer 'light' takes no weights; models is not used"):
        assert load_scorer('light', 'models').name == 'light'
    register_scorer('eyes', Halves)
    with pytest.raises(UsageError, match='has no `score`'): load_scorer('eyes')
