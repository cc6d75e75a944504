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


def test_hps_is_the_cosine_of_open_clip_features(tmp_path):
    import open_clip
    import torch
    cfg = dict(
        embed_dim=32,
        vision_cfg=dict(
            image_size=32,
            layers=1,
            width=32,
            head_width=16,
            patch_size=8,
        ),
        text_cfg=dict(
            context_length=77,
            vocab_size=49408,
            width=8,
            heads=2,
            layers=1,
        ),
    )
    net = open_clip.CLIP(**cfg).eval()
    torch.save(dict(state_dict=net.state_dict()), tmp_path/'HPS_v2.1_compressed.pt')
    (tmp_path/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg)))
    s = load_scorer('hps', tmp_path, 'cpu')
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
    from hgdpo_curate.registry import load_state
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
    from hgdpo_curate.registry import WEIGHTS
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
        from hgdpo_curate.registry import load_state
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
    with pytest.raises(UserError, match='holds no recogniser'):
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


def test_inception_comes_before_a_tiny_evaluator_but_not_for_drawings(finished, copy_of, monkeypatch):
    from pathlib import Path
    from hgdpo_curate.evaluate import features
    from hgdpo_curate.pipelines import assets_folder
    # its own loading is tested above
    monkeypatch.setattr(features, 'Inception', lambda path, device: 'inception')
    monkeypatch.setattr(features, 'hub_inception', lambda: Path('weights.pth'))
    ws = copy_of(finished)
    assert features.load_extractor(ws).name == 'tiny'
    ws.append('photo_facts', ws.table('photo_facts').drop(columns='written_at').assign(source='a camera'))
    shutil.copytree(assets_folder(), ws.root/'tiny')
    assert features.load_extractor(ws) == 'inception'
    monkeypatch.setattr(features, 'hub_inception', lambda: None)
    assert features.load_extractor(ws).name == 'tiny'
