"""Detectors: real weights where they are at hand (YuNet), else random weights in the layout of the real files.

And how often rules suspect real people.
"""
import json
import sys

import numpy as np
import pytest
from conftest import make_workspace, quiet

from hgdpo_curate import UserError
from hgdpo_curate.judge.rules import apply_rules, Detections, joints_of, real_proportions
from hgdpo_curate.judge.detections import detect, JOINTS
from hgdpo_curate.judge.detectors import load_detector


def picture(seed=0, size=(96, 128)):
    from PIL import Image
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


@pytest.fixture(scope='module')
def vitpose_folder(tmp_path_factory):
    "ViTPose and RT-DETR with random weights, as `hf download` would lay them out."
    from transformers import (
        RTDetrConfig,
        RTDetrForObjectDetection,
        RTDetrImageProcessor,
        RTDetrResNetConfig,
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
        VitPoseImageProcessor,
    )
    import torch
    torch.manual_seed(0)
    folder, d = tmp_path_factory.mktemp('vitpose'), 32
    names = dict(enumerate(JOINTS['vitpose']))
    pose = VitPoseConfig(
        backbone_config=VitPoseBackboneConfig(
            image_size=(64, 48),
            patch_size=(16, 16),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            num_experts=6,
            part_features=8,
            out_indices=[2],
        ),
        scale_factor=4,
        use_simple_decoder=True,
        id2label=names,
        label2id={n: i for i, n in names.items()},
    )
    VitPoseForPoseEstimation(pose).save_pretrained(folder/'pose')
    VitPoseImageProcessor(size=dict(height=64, width=48)).save_pretrained(folder/'pose')
    person = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1] * 4,
            layer_type='basic',
            out_features=['stage2', 'stage3', 'stage4'],
        ),
        encoder_in_channels=[8, 16, 16],
        encoder_hidden_dim=d,
        hidden_expansion=0.5,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=d,
        decoder_in_channels=[d] * 3,
        decoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_queries=20,
        num_denoising=0,
        id2label={0: 'person'},
        label2id={'person': 0},
    )
    RTDetrForObjectDetection(person).save_pretrained(folder/'person')
    RTDetrImageProcessor(size=dict(height=128, width=128)).save_pretrained(folder/'person')
    return folder


def test_vitpose_gives_people_with_17_joints_inside_its_protocol(vitpose_folder):
    from hgdpo_curate.judge.detectors import VitPosePeople
    detector = VitPosePeople(vitpose_folder, confidence=.0)                    # random weights are sure of nothing
    found = detector.detect([picture(0), picture(1, (64, 80))])
    assert len(found) == 2 and all(found)
    for d in found[0]:
        assert (
            d['kind'] == 'person'
            and len(d['box']) == 4
            and np.shape(d['keypoints']) == (17, 3)
            and 0 <= d['confidence'] <= 1
        )
    assert VitPosePeople(vitpose_folder, confidence=.999).detect([picture(0)]) == [[]]     # nobody: no joints, no crash


def test_open_clip_triage_prefers_by_the_two_prompts(tmp_path):
    import open_clip
    from safetensors.torch import save_file
    from conftest import tiny_open_clip
    cfg = tiny_open_clip(64, 16)
    (tmp_path / 'open_clip_config.json').write_text(
        json.dumps(
            dict(
                model_cfg=cfg,
                preprocess_cfg=dict(
                    mean=[0.5] * 3,
                    std=[0.5] * 3,
                    interpolation='bicubic',
                    resize_mode='shortest',
                ),
            )
        )
    )
    with pytest.raises(UserError, match='contains no weights'): load_detector('clip', tmp_path)
    net = open_clip.CLIP(**cfg)
    save_file(net.state_dict(), tmp_path/'open_clip_model.safetensors')
    found = load_detector('clip', tmp_path).detect([picture(0), picture(1)])
    assert [d['kind'] for d in found[0]] == [
        f'triage:{f}' for f in ('bad_hand', 'bad_foot', 'extra_limb', 'deformed_face', 'low_quality')
    ]
    _, _, prepare = open_clip.create_model_and_transforms(f'local-dir:{tmp_path}')
    import torch
    from hgdpo_curate.judge.scores import photo_embedder
    # the same model finds near duplicates
    a, b, c = photo_embedder(tmp_path)([picture(0), picture(0), picture(1)])
    # nothing is in the cache here: the perceptual hash serves
    assert np.allclose(a, b) and not np.allclose(a, c) and photo_embedder() is None
    from hgdpo_curate.judge.detectors import OPPOSITES
    net.eval()
    with torch.no_grad():
        logits = (
            net.encode_image(prepare(picture(0))[None], normalize=True)
            @ net.encode_text(open_clip.tokenize(OPPOSITES['bad_hand']), normalize=True).T
        ) * net.logit_scale.exp()
    assert abs(found[0][0]['confidence'] - float(logits.softmax(-1)[0, 1])) < 1e-4


def tiny_scrfd(path):
    "A face detector in insightface's format: any bright, aligned block of 32 x 32 pixels is a face."
    from onnx import TensorProto as T, helper as h, numpy_helper as nh, save
    nodes = [
        h.make_node(
            'AveragePool',
            ['input.1'],
            [f'p{s}'],
            kernel_shape=[s, s],
            strides=[s, s],
        )
        for s in (8, 16, 32)
    ]
    inits, outs = dict(off_w=np.zeros((2, 3, 1, 1), 'f4'), off_b=np.full(2, -50, 'f4')), []
    for part, n in (('score', 1), ('bbox', 4), ('kps', 10)):
        bias = dict(score=[-16], bbox=[0, 0, 1, 1], kps=[.3, .4, .7, .4, .5, .6, .35, .8, .65, .8])[part]
        inits |= {
            f'{part}_w': np.full((2 * n, 3, 1, 1), 8.0 if part == 'score' else 0, 'f4'),
            f'{part}_b': np.tile(bias, 2).astype('f4'),
            f'{part}_sh': np.array([-1, n], np.int64),
        }
        for s in (8, 16, 32):
            k, wb = f'{part}_{s}', ['off_w', 'off_b'] if part == 'score' and s < 32 else [f'{part}_w', f'{part}_b']
            nodes += [
                h.make_node('Conv', [f'p{s}', *wb], [k + 'c']),
                h.make_node('Transpose', [k + 'c'], [k + 't'], perm=[2, 3, 0, 1]),
                h.make_node('Reshape', [k + 't', f'{part}_sh'], [k + 'r' if part == 'score' else k]),
            ]
            if part == 'score': nodes.append(h.make_node('Sigmoid', [k+'r'], [k]))
            outs.append((k, [f'n{s}', n]))
    graph = h.make_graph(
        nodes,
        'g',
        [h.make_tensor_value_info('input.1', T.FLOAT, [1, 3, 'height', 'width'])],
        [h.make_tensor_value_info(n, T.FLOAT, s) for n, s in outs],
        [nh.from_array(a, k) for k, a in inits.items()],
    )
    save(h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8), str(path))


def test_insightface_loads_a_pack_from_its_folder_and_asks_for_its_licence(tmp_path):
    from PIL import Image
    folder = tmp_path/'models'/'tiny'
    folder.mkdir(parents=True)
    tiny_scrfd(folder/'det_tiny.onnx')
    with pytest.raises(UserError, match='non-commercial'): load_detector('insightface', folder)
    from hgdpo_curate.judge.detectors import InsightFaces
    detector = InsightFaces(folder, accept_noncommercial=True, size=256)
    image = Image.new('RGB', (256, 256))
    image.paste('white', (64, 96, 96, 128))
    (face,), = detector.detect([image])
    assert (
        face['kind'] == 'face'
        and np.abs(np.subtract(face['box'], [64, 96, 32, 32])).max() < 2
        and np.shape(face['keypoints']) == (5, 2)
    )
    assert detector.detect([Image.new('RGB', (256, 256))]) == [[]]
    (folder/'det_tiny.onnx').write_bytes(b'nonsense')
    with pytest.raises(UserError, match='not an insightface model pack'):
        load_detector('insightface', folder, accept_noncommercial=True)


def test_mediapipe_is_optional(tmp_path, monkeypatch):
    "Its networks are tested in test_hands.py, where they are at hand."
    (tmp_path/'hand_landmarker.task').write_bytes(b'x')
    monkeypatch.setitem(sys.modules, 'mediapipe', None)
    with pytest.raises(UserError, match=r'pip install "hgdpo_curate\[hands\]"'):
        load_detector('mediapipe', tmp_path/'hand_landmarker.task')


def test_a_detector_looks_once_and_again_only_with_another_version(finished, copy_of):
    ws, looked = copy_of(finished), []
    class Eye:
        name, version = 'yunet', '1'
        def detect(self, images):
            looked.extend(images)
            return [
                [
                    dict(
                        kind='face',
                        confidence=0.9,
                        box=[1.0, 1.0, 5.0, 5.0],
                        keypoints=None,
                    )
                ]
                * 2
                for _ in images
            ]
    assert (
        detect(ws, Eye(), ('real',), progress=quiet) == 8
        and detect(ws, Eye(), ('real',), progress=quiet) == 0
        and len(looked) == 8
    )
    from hgdpo_curate.judge.anatomy import propose_flags
    propose_flags(ws)
    assert (ws.table('flags').query("source == 'rule'").flag == 'extra_face').sum() == 8
    Eye.version, Eye.detect = '2', lambda self, images: [[] for _ in images]
    assert detect(ws, Eye(), ('real',), progress=quiet) == 8
    # the newer version saw no faces: the proposals are cleared
    propose_flags(ws)
    assert set(ws.table('flags').query("source == 'rule'").status) == {'cleared'}


def test_rules_suspect_few_of_the_real_people_in_scenes(test_data):
    """COCO's annotators marked the joints; whoever is flagged here is a false alarm.

    Proportions come from the one half of the people and are tried on the other.
    """
    people = []
    for line in (test_data/'photos'/'scenes'/'metadata.jsonl').read_text().splitlines():
        row = json.loads(line)
        from PIL import Image
        with Image.open(test_data/'photos'/'scenes'/row['file_name']) as im: size = im.size
        for p in row['people']:
            if p['iscrowd']: continue
            points = np.array(p['keypoints'], float).reshape(17, 3)
            people.append(
                (
                    size,
                    dict(
                        kind='person',
                        confidence=1.0,
                        box=p['bbox'],
                        keypoints=[[x, y, v / 2] for x, y, v in points],
                    ),
                )
            )
    assert len(people) > 40
    halves = people[::2], people[1::2]
    spans = [real_proportions([joints_of(d, 'coco') for _, d in half]) for half in halves]
    said = [
        p['flag']
        for half, span in zip(halves, spans[::-1])
        for size, d in half
        for p in apply_rules(Detections('coco', size, [d], span))
    ]
    alarms = {f: said.count(f) for f in dict.fromkeys(said)}
    print(f'{len(people)} people: {alarms}')
    assert sum(n for f, n in alarms.items() if f != 'cropped') <= .1*len(people), alarms


def test_yunet_suspects_few_faces_of_the_street(test_data):
    from PIL import Image
    yunet = load_detector('yunet', test_data/'models'/'yunet_n_640_640.onnx')
    files = sorted((test_data/'photos'/'street').glob('*.jpg'))[::20]
    images = [Image.open(f) for f in files]
    found = yunet.detect(images)
    flags = [{p['flag'] for p in apply_rules(Detections('yunet', im.size, d))} for im, d in zip(images, found)]
    one = np.mean([sum(d['confidence'] >= .8 for d in ds) == 1 for ds in found])
    alarms = {k: sum(k in f for f in flags) for k in ('extra_face', 'deformed_face')}
    print(f'{len(files)} photos: one sure face in {one:.0%}, {alarms}')
    assert one > .6 and alarms['deformed_face'] <= .03*len(files) and alarms['extra_face'] <= .1*len(files)


def test_flags_reach_the_tables_from_the_command_line(tmp_path, random_base, capsys):
    from hgdpo_curate.cli import main
    ws = make_workspace(tmp_path/'ws', random_base, photos=3)
    assert main(['flag', '--workspace', str(ws.root)]) == 0 and main(['flag', '--workspace', str(ws.root)]) == 0
    # run twice, said once
    assert set(ws.table('detections').detector) == {'drawn_faults'} and len(ws.table('flags')) == len(
        ws.table('flags', history=True)
    )
