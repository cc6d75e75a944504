"""Cards say what is.

Computed from the files, asked from people, never invented, never a way in for text from outside.
"""
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, a_part_anew, nothing_seen, quiet, seen_alone, winner
from hypothesis import given, settings, strategies as st

from hgdpo_curate import UserError, forget, load_split, make_card, write_model_card
from hgdpo_curate.cli import main
from hgdpo_curate.document.answers import answers_file, CARD_QUESTIONS, read_answers, write_questions
from hgdpo_curate.document.contents import channel_statistics, latent_files, leakage, read_latents
from hgdpo_curate.document.data_card import card_files, card_text, draw_pairs
from hgdpo_curate.document.croissant import check_croissant, read_pairs
from hgdpo_curate.document.facts import cohen_kappa, facts_json, rule_agreement, split_facts
from hgdpo_curate.document.pages import escape, to_html
from hgdpo_curate.files import read_json


def answer(ws, **said):
    "Fill in the asked-for file as a person would; all fields where none is named."
    write_questions(ws)
    file = answers_file(ws)
    text = file.read_text()
    for k, v in (said or dict.fromkeys(CARD_QUESTIONS, 'something')).items():
        text = re.sub(rf'^{k}: .*$', lambda m, k=k, v=v: yaml.safe_dump({k: v}, width=10**6).strip(), text, flags=re.M)
    file.write_text(text)


@pytest.fixture(scope='module')
def facts(lived_in): return split_facts(lived_in)


def test_the_readme_is_a_hub_card_with_every_section_and_says_what_is_missing(lived_in, copy_of, capsys):
    from huggingface_hub import DatasetCard
    ws = copy_of(lived_in)
    card = DatasetCard.load(ws.root/'splits'/'v1'/'README.md')
    assert (
        card.data.task_categories == ['text-to-image']
        and card.data.license == 'unknown'
        and [c['config_name'] for c in card.data.to_dict()['configs']]
        == ['easy', 'normal', 'hard', 'test_prompts', 'controls']
    )
    for s in (
        'Motivation',
        'Composition',
        'Collection',
        'Consent and licences',
        'Preprocessing',
        'Annotation',
        'Winners and losers',
        'Captions',
        'Duplicates and leakage',
        'Uses',
        'Biases and limits',
        'Distribution',
        'Maintenance and takedown',
        'Provenance',
    ):
        assert f'\n## {s}\n' in card.text, s
    assert card.text.index('**Incomplete.**') < card.text.index('## Motivation') and card.text.count('*missing*') >= 15
    go = ['card', '--workspace', str(ws.root)]
    assert main(go) == 0 and main([*go, '--strict']) == 1
    answer(ws)
    assert main([*go, '--strict']) == 0
    assert (
        'Incomplete' not in (ws.root / 'splits' / 'v1' / 'README.md').read_text()
        and 'Incomplete' not in capsys.readouterr().out.splitlines()[-1]
    )


def test_copies_lie_in_data_cards_and_find_their_pictures(lived_in):
    for name in ('v1.md', 'v1.html', 'v1.croissant.json'): assert (lived_in.root/'data_cards'/name).exists()
    for md in (
        lived_in.root / 'data_cards' / 'v1.md',
        lived_in.root / 'splits' / 'v1' / 'README.md',
        lived_in.root / 'runs' / 'r' / 'README.md',
        lived_in.root / 'runs' / 'r' / 'final' / 'README.md',
    ):
        pictures = re.findall(r'!\[[^]]*\]\(([^)]+)\)', md.read_text())
        assert pictures and all((md.parent/p).exists() for p in pictures), md


def test_croissant_is_valid_and_its_record_sets_are_the_pairs(lived_in):
    import mlcroissant as mlc
    data = load_split(lived_in)
    for file in (lived_in.root/'splits'/'v1'/'croissant.json', lived_in.root/'data_cards'/'v1.croissant.json'):
        assert not mlc.Dataset(str(file)).metadata.ctx.issues.errors
        for s in ('easy', 'normal', 'hard'):
            if len(data[s]): pd.testing.assert_frame_equal(read_pairs(file, s), data[s], check_dtype=False)
        assert read_pairs(file, 'test_prompts').prompt.tolist() == data['test'].prompt.tolist()
        rai = {k for k in json.loads(file.read_text()) if k.startswith('rai:')}
        assert {
            'rai:dataCollection',
            'rai:dataBiases',
            'rai:personalSensitiveInformation',
            'rai:dataAnnotationAnalysis',
            'rai:dataUseCases',
            'rai:dataReleaseMaintenancePlan',
        } <= rai and len(rai) >= 15
    spoilt = json.loads(file.read_text())
    spoilt['recordSet'][0]['field'][0]['source']['fileObject']['@id'] = 'nowhere'
    bad = file.with_name('bad.json')
    bad.write_text(json.dumps(spoilt))
    with pytest.raises(UserError, match='not valid'): check_croissant(bad, {})
    bad.unlink()


def test_croissant_says_who_where_and_under_which_licence(lived_in, copy_of):
    import mlcroissant as mlc
    ws = copy_of(lived_in)
    folder, copies = ws.root/'splits'/'v1', ws.root/'data_cards'
    def metadata(file): return mlc.Dataset(str(file)).metadata
    told = metadata(folder/'croissant.json')
    assert told.url == 'README.md' and metadata(copies/'v1.croissant.json').url == 'v1.md'
    assert (copies/'v1.md').exists() and told.license == ['unknown'] and 'missing' in told.creators[0].name
    where = 'to members, at https://example.org/people (ask first)'
    answer(ws, creators='Anna Adler; The Studio, Paris', licence='cc-by-4.0', distribution=where)
    told = metadata(make_card(ws).path.with_name('croissant.json'))
    assert [c.name for c in told.creators] == ['Anna Adler', 'The Studio, Paris']
    assert told.license == ['https://spdx.org/licenses/CC-BY-4.0'] and told.url == 'https://example.org/people'
    assert not told.ctx.issues.errors and not told.ctx.issues.warnings
    kinds = {f.id: f.data_types for r in told.record_sets for f in r.fields}
    assert {str(k) for ks in kinds.values() for k in ks} == {
        'https://schema.org/Text', 'https://schema.org/Float', 'https://schema.org/Integer',     # an image's bytes
    }
    assert str(kinds['easy/prompt'][0]).endswith('Text') and 'controls/stage' in kinds
    assert len(read_pairs(folder/'croissant.json', 'controls')) == len(pd.read_parquet(folder/'controls.parquet'))


def test_load_dataset_reads_the_folder_of_a_split(lived_in, tmp_path):
    datasets = pytest.importorskip('datasets')
    folder = lived_in.root/'splits'/'v1'
    def load(*config): return datasets.load_dataset(str(folder), *config, cache_dir=str(tmp_path))
    for name, config, fold in (('easy', (), 'train'), ('test_prompts', ('test_prompts',), 'test'),
                               ('controls', ('controls',), 'train'), ('normal', ('normal',), 'train')):
        rows = load(*config)
        assert list(rows) == [fold] and rows[fold].to_pandas().equals(pd.read_parquet(folder/f'{name}.parquet')), name
    assert datasets.get_dataset_default_config_name(str(folder)) == 'easy'


def test_croissant_types_no_review_and_no_period_that_nobody_gave(lived_in, copy_of, facts):
    from datetime import datetime
    from hgdpo_curate.document.croissant import responsible_ai
    reviewed = lambda **n: replace(facts, reviewing=replace(facts.reviewing, **n))
    none = responsible_ai(reviewed(reviewers=0, items=0, words=0), {})
    assert (
        none['annotations_per_item'].startswith('0')
        and 'FiftyOne' not in str(none['data_annotation_platform'])
        and none['data_collection_timeframe'] is None
    )
    one = responsible_ai(
        reviewed(reviewers=2, items=4, words=6),
        dict(collection_period='2024-05-01 to 2025-02-28'),
    )
    assert one['annotations_per_item'].startswith('1.50 people') and one['data_collection_timeframe'] == [
        datetime(2024, 5, 1),
        datetime(2025, 2, 28),
    ]
    assert (
        responsible_ai(facts, dict(collection_period='some years ago, 2024-99-01'))['data_collection_timeframe'] is None
    )
    ws = copy_of(lived_in)
    answer(ws, collection_period='2024-05-01 to 2025-02-28')
    assert [
        str(d)[:10] for d in read_json(make_card(ws).path.with_name('croissant.json'))['rai:dataCollectionTimeFrame']
    ] == ['2024-05-01', '2025-02-28']


# --- what is computed

def test_counts_hashes_and_levels_are_those_of_the_files(lived_in, facts):
    data, im = load_split(lived_in), lived_in.table('images').set_index('image_id')
    assert facts.pairs == {s: len(data[s]) for s in ('easy', 'normal', 'hard')}
    assert facts.sha256 == data.info.sha256
    assert sum(n for _, n in facts.levels['normal']) == len(data['normal'])
    assert dict(facts.levels['normal']) == {
        f't = {t}': n for t, n in im.level[data['normal'].winner_id].value_counts().items()
    }
    assert dict(facts.levels['hard']) == ({'t = 100': len(data['hard'])} if len(data['hard']) else {})
    assert facts.margins['easy'].margin[2] == pytest.approx(
        (data['easy'].winner_score - data['easy'].loser_score).median()
    )
    assert facts.filter.cut == sum(d['reason'].startswith('filter') for d in data.info.dropped['normal'])
    assert (
        facts.versions['torch'] != 'not installed'
        and facts.reviewing.reviewers == 1
        and facts.stated.licence[0][0] == 'CC0-1.0'
    )
    plain = json.loads(facts_json(facts))
    assert plain['pairs'] == facts.pairs and plain['margins']['easy']['margin'] == facts.margins['easy'].margin


def test_sizes_of_images_are_those_of_the_table_whatever_the_settings_say(lived_in, copy_of):
    ws = copy_of(lived_in)
    text = make_card(ws).path.read_text()
    assert 'width and height in pixels: 40x56.\n' in text and 'fitted around the person to 40x56 pixels' in text
    im, easy = ws.table('images').drop(columns='written_at'), load_split(ws)['easy']
    n = int(im.prompt_id.isin([*easy.prompt_id, *load_split(ws)['test'].prompt_id]).sum())
    ws.append('images', im[im.image_id == easy.winner_id[0]].assign(width=48))
    ws.append('images', im[(im.domain == 'real') & (im.prompt_id == easy.prompt_id[1])].assign(width=64, height=64))
    (ws.root/'workspace.toml').write_text((ws.root/'workspace.toml').read_text().replace('40x56', '512'))
    card = make_card(ws).path
    text = card.read_text()
    shapes = dict(re.findall(r'^\| (\d+x\d+) \|(.*)\|$', text, re.M))
    counts = {shape: [int(c) for c in cells.split('|')] for shape, cells in shapes.items()}
    assert 'in pixels: see the table' in text and counts['48x56'] == [0, 1, 0, 0] and counts['64x64'] == [1, 0, 0, 0]
    assert sum(counts['40x56']) == n - 2
    real = f'40x56 ({split_facts(ws).photos - 1}), 64x64 (1) pixels'
    assert (
        f'fitted around the person to {real}' in text
        and f'fitted to {real}' in card.with_name('croissant.json').read_text()
    )


def test_leakage_between_folds_is_found_when_planted(lived_in, copy_of):
    ws = copy_of(lived_in)
    data = load_split(ws)
    clean = leakage(ws, data)
    assert (
        clean.near_duplicates_across == clean.captions_in_both == clean.files_in_both == clean.prompts_in_both == 0
    )
    pr = ws.table('prompts').set_index('prompt_id')
    train, test = data['easy'].prompt_id[0], data['test'].prompt_id[0]
    ws.append(
        'duplicates',
        [
            dict(
                image_id=pr.real_image_id[train],
                other_id=pr.real_image_id[test],
                kind='near',
                distance=0.0,
            )
        ],
    )
    ws.append(
        'prompts',
        [
            dict(
                prompt_id=test,
                prompt=pr.prompt[train],
                real_image_id=pr.real_image_id[test],
                fold='test',
            )
        ],
    )
    dirty = leakage(
        ws,
        data | dict(test=data['test'].assign(sha256=[data['easy'].winner_sha256[0]] + list(data['test'].sha256[1:]))),
    )
    assert (dirty.near_duplicates_across, dirty.captions_in_both, dirty.files_in_both) == (1, 1, 1)


def test_kappa_is_sklearns_and_its_interval_holds_it(lived_in, copy_of):
    from sklearn.metrics import cohen_kappa_score
    rng = np.random.default_rng(3)
    for _ in range(20):
        a = rng.random(30) < .4
        b = np.where(rng.random(30) < .3, ~a, a)
        assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    ws = copy_of(lived_in)
    assert rule_agreement(ws).kappa is None                                       # too few were judged by both
    ids = [
        i
        for i in ws.table('images').query("domain == 'generated'").image_id
        if i not in set(ws.table('flags').image_id)
    ][:20]
    flag = lambda i, source, status: dict(
        image_id=i,
        flag='extra_limb',
        status=status,
        confidence=1.0,
        source=source,
        part='',
        side='',
        reason='',
        rule_version='',
        reviewer='b' if source == 'human' else '',
    )
    ws.append('detections', [nothing_seen(i) for i in ids])
    ws.append(
        'flags',
        [flag(i, 'rule', 'proposed') for i in ids[:8]]
        + [flag(i, 'human', 'confirmed' if n in (0, 1, 2, 3, 4, 5, 15) else 'cleared') for n, i in enumerate(ids)],
    )
    got = rule_agreement(ws)
    assert (got.both_faulty, got.only_rule, got.only_human, got.neither) == (6, 2, 1, 11)
    k, low, high = got.kappa
    assert k == pytest.approx(cohen_kappa_score([1]*8 + [0]*12, [1]*6 + [0]*9 + [1] + [0]*4)) and low < k < high
    assert f'κ = {k:.2f}' in make_card(ws).path.read_text()


@pytest.fixture
def drawn(tmp_path):
    "A workspace of a few drawn photos and nothing else: enough for what tables tell."
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    ws = create_workspace(tmp_path/'drawn', resolution='40x56')
    import_photos(ws, export_photos(tmp_path/'photos', 4, seed=5), progress=lambda x, **k: x)
    return ws


def test_of_a_persons_words_the_last_counts_against_the_rules(drawn):
    from hgdpo_curate.curate.reviews import clear_flags, flag_images_by_hand
    from hgdpo_curate.document.facts import judged
    taken_back, cleared, faulty, unsure = drawn.table('images').image_id
    drawn.append('detections', [nothing_seen(i) for i in drawn.table('images').image_id])
    flag_images_by_hand(drawn, [taken_back, cleared, faulty], 'bad_hand', reviewer='a')
    flag_images_by_hand(drawn, [taken_back], 'ok', reviewer='a')
    clear_flags(drawn, [cleared], reviewer='b')
    flag_images_by_hand(drawn, [unsure], 'unsure', reviewer='a')
    assert judged(drawn).set_index('image_id').human.to_dict() == {taken_back: False, cleared: False, faulty: True}


def test_a_card_tells_the_versions_that_froze_the_split_from_its_own(lived_in, facts):
    info = read_json(lived_in.root/'splits'/'v1'/'split.json')
    assert facts.versions == info['versions'] and {'python', 'torch', 'accelerate'} <= set(info['versions'])
    told = lambda **v: card_text(replace(facts, **v), {}).split('\n## Provenance\n')[1]
    assert '| torch | 1.0 | 2.0 |' in told(
        versions=dict(torch='1.0', numpy='1'), card_versions=dict(torch='2.0', numpy='1')
    ) and '| numpy | 1 |  |' in told(versions=dict(torch='1.0', numpy='1'), card_versions=dict(torch='2.0', numpy='1'))
    assert 'wrote this card' not in told(
        versions=dict(torch='1.0'), card_versions=dict(torch='1.0')
    ) and '| torch | not recorded | 2.0 |' in told(versions={}, card_versions=dict(torch='2.0'))


def test_tags_of_the_metadata_are_not_told_as_what_people_declared(drawn):
    from hgdpo_curate.document.contents import stated
    photo = drawn.table('photo_facts').drop(columns='written_at')
    drawn.append('photo_facts', [dict(r, attributes=['1girl', 'tall']) for r in photo[:1].to_dict('records')])
    said = stated(drawn.table('photo_facts'))
    assert (
        sorted(said.tags) == [('1girl', 1), ('tall', 1)]
        and said.attributes
        and not any('tall' in k or 'tag' in k for k, _ in said.attributes)
    )


def test_exact_duplicates_of_the_splits_photos_are_counted(lived_in, copy_of, tmp_path):
    from conftest import plain
    from hgdpo_curate import import_photos
    from hgdpo_curate.document.contents import Copies
    ws = copy_of(lived_in)
    assert split_facts(ws).copies == Copies(photos=0, names=0, unrecorded=0)
    file = winner(ws)['original']
    (tmp_path/'more').mkdir()
    for n in range(2):
        shutil.copy(file, tmp_path/'more'/f'again{n}.png')
        (tmp_path/'more'/f'again{n}.txt').write_text('the same')
    import_photos(ws, tmp_path/'more', progress=plain)
    assert (
        '1 photos were imported under 2 further file names' in (text := make_card(ws).path.read_text())
        and 'Not recorded' not in text
        and 'again0' not in text
    )
    # as an older import left them
    ws.append('photo_facts', ws.table('photo_facts').drop(columns='written_at').assign(copies=None))
    assert f'Not recorded for {split_facts(ws).photos} photos' in make_card(ws).path.read_text()


def test_the_card_says_by_which_method_and_at_which_distance_near_duplicates_were_found(lived_in, copy_of, monkeypatch):
    from hgdpo_curate.images import duplicates
    ws = copy_of(lived_in)
    told = lambda: card_text(split_facts(ws), {}).split('\n## Duplicates and leakage\n')[1].split('\n## ')[0]
    assert (
        f'| perceptual hash | differing bits of {duplicates.HASH_BITS} | {duplicates.HASH_LIMIT} | 8 |' in told()
        and 'embedding' not in told()
    )
    monkeypatch.setattr(duplicates, 'HASH_LIMIT', 3)
    class Model:
        name, version = 'colours', '7'
        def embed(self, images): return np.stack([np.asarray(i, float).mean((0, 1)) for i in images])
    for embed in (None, Model().embed): duplicates.find_near_duplicates(ws, embed)
    assert (
        '| differing bits of 64 | 3 | 8 |' in told()
        and f'| embedding colours 7 | 1 - cosine | {duplicates.COSINE_LIMIT} | 8 |' in told()
    )
    everyone = len(ws.table('photo_facts'))
    # 0 is a distance too
    assert duplicates.find_near_duplicates(ws, Model().embed, distance=0) < everyone*(everyone - 1)//2
    easy = ws.table('prompts').set_index('prompt_id').real_image_id[load_split(ws)['easy'].prompt_id[:2]]
    before = split_facts(ws).leakage.by_hand
    ws.append(
        'duplicates',
        [
            dict(
                image_id=easy.iloc[0],
                other_id=easy.iloc[1],
                kind='near',
                distance=None,
            )
        ],
    )
    assert split_facts(ws).leakage.by_hand == before + 1 and f'{before + 1} of them marked by a person' in told()
    (ws.root/duplicates.COMPARED).unlink()
    assert '*not recorded' in told()


def test_people_and_quarrels_are_those_of_this_split_and_rules_carry_their_version(lived_in, copy_of):
    from hgdpo_curate.document.contents import prompts_of
    from hgdpo_curate.document.facts import flags_by_kind, reviewing
    ws, data = copy_of(lived_in), load_split(lived_in)
    other = ws.table('images').query("domain == 'evaluation'").image_id.iloc[0]
    photos = list(ws.table('images').query("domain == 'real'").image_id)
    before = reviewing(ws, data, photos)
    ws.append(
        'reviews',
        [
            dict(
                subject_id=s,
                decision=d,
                reviewer=r,
                note='',
            )
            for s in ('no-pair-of-this-split', other)
            for d, r in (('approve', 'x'), ('reject', 'y'))
        ],
    )
    assert reviewing(ws, data, photos) == before and before.reviewers == 1 and before.contested == 0
    pair = data['easy'].pair_id[0]
    ws.append(
        'reviews',
        [
            dict(
                subject_id=pair,
                decision=d,
                reviewer=r,
                note='',
            )
            for d, r in (('approve', 'x'), ('reject', 'y'))
        ],
    )
    assert reviewing(ws, data, photos).contested == 1 and reviewing(ws, data, photos).reviewers == 3
    winner = data['easy'].winner_id[1]
    ws.append(
        'flags',
        [
            dict(
                image_id=winner,
                flag='extra_limb',
                status='proposed',
                confidence=1.0,
                source='rule',
                part='',
                side='',
                reason='',
                rule_version='rule_fault_head/2',
                reviewer='',
            )
        ],
    )
    assert dict(
        flag='extra_limb',
        source='rule',
        rule='rule_fault_head/2',
        status='proposed',
        images=1,
    ) in flags_by_kind(ws, prompts_of(data))


def test_channel_statistics_come_from_the_training_cache_or_are_not_measured(lived_in, copy_of):
    data = load_split(lived_in)
    latents = dict(
        read_latents(latent_files(lived_in, set(data['easy'].winner_sha256) | set(data['easy'].loser_sha256)))
    )
    assert len(latents) == len(set(data['easy'].winner_sha256) | set(data['easy'].loser_sha256))
    s = channel_statistics(lived_in, data)['easy']
    w, l = (np.stack([latents[h] for h in data['easy'][f'{x}_sha256']]) for x in ('winner', 'loser'))
    assert s.winner_mean == pytest.approx(w.mean((0, 2, 3)), rel=1e-4) and 0 <= s.mean_distance <= 2
    a, b = w.mean((0, 2, 3)), l.mean((0, 2, 3))
    assert s.mean_distance == pytest.approx(1 - a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-4)
    assert s.loser_std == pytest.approx(l.std((2, 3)).mean(0), rel=1e-6)
    ws = copy_of(lived_in)
    shutil.rmtree(ws.root/'cache')
    assert 'not measured, because no training cache' in make_card(ws).path.read_text()


def test_channel_statistics_hold_no_more_than_a_latent_or_two_at_a_time(tmp_path, monkeypatch):
    "Shard by shard, in half precision and with a mean far from 0, they are those of all latents at once."
    import weakref

    import torch
    from safetensors.torch import save_file

    from hgdpo_curate import create_workspace
    from hgdpo_curate.document import contents
    ws, rng = create_workspace(tmp_path/'ws', resolution='40x56'), np.random.default_rng(1)
    names = [f'{i:064x}' for i in range(40)]
    x = {n: torch.from_numpy(rng.normal(200, .5 + i/40, (2, 4, 9, 7))).half() for i, n in enumerate(names)}
    (ws.root/'cache'/'latents-m-fp16').mkdir(parents=True)
    for i in range(0, 40, 8):
        save_file({n: x[n] for n in names[i:i+8]}, ws.root/'cache'/'latents-m-fp16'/f'{i}.safetensors')
    # one loses twice
    pairs = pd.DataFrame(dict(winner_sha256=names[:20], loser_sha256=[*names[20:38], names[38], names[38]]))
    alive, most, real = weakref.WeakSet(), [0], contents.read_latents
    class Watched(np.ndarray): __hash__ = object.__hash__
    def watch(files):
        for h, a in real(files):
            a = a.copy().view(Watched)
            alive.add(a)
            most[0] = max(most[0], len(alive))
            yield h, a
    monkeypatch.setattr(contents, 'read_latents', watch)
    got = channel_statistics(ws, dict(easy=pairs, normal=pairs[:5], hard=pairs[:0].copy()))
    assert most[0] <= 2 and got['hard'] is None and got['normal'].pairs == 5
    for who in ('winner', 'loser'):
        a = np.stack([x[n][0].double().numpy() for n in pairs[f'{who}_sha256']])
        assert getattr(got['easy'], f'{who}_mean') == pytest.approx(a.mean((0, 2, 3)), rel=1e-12)
        assert getattr(got['easy'], f'{who}_std') == pytest.approx(a.std((2, 3)).mean(0), rel=1e-9)


def test_every_stage_that_was_measured_is_drawn(tmp_path, monkeypatch):
    from hgdpo_curate.document import data_card as cards
    from hgdpo_curate.document.contents import ChannelStatistics
    one, figures = (
        ChannelStatistics(
            pairs=3,
            winner_mean=[1.0, 2.0],
            loser_mean=[2.0, 1.0],
            winner_std=[1.0, 1.0],
            loser_std=[1.0, 2.0],
            mean_distance=0.25,
            std_distance=0.125,
        ),
        [],
    )
    monkeypatch.setattr(
        cards, 'save_figure', lambda fig, file: figures.append([ax.get_title(loc='left') for ax in fig.axes])
    )
    assert cards.draw_channels(
        dict(easy=one, normal=None, hard=replace(one, mean_distance=0.5)), tmp_path / 'x.png'
    ) and not cards.draw_channels(dict(easy=None, normal=None, hard=None), tmp_path / 'x.png')
    assert figures == [
        [
            'easy: means per channel (cosine distance 0.2500)',
            'easy: deviations per channel (cosine distance 0.1250)',
            'hard: means per channel (cosine distance 0.5000)',
            'hard: deviations per channel (cosine distance 0.1250)',
        ]
    ]


# --- text from outside

class Tags(HTMLParser):
    "Tags and attributes of a page."
    def __init__(self, text):
        super().__init__()
        self.seen, self.attrs = [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attrs += attrs


HOSTILE = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                '<script>alert(1)</script>',
                '<img src=x onerror=y>',
                '![x](http://evil/x.png)',
                '[a](javascript:b)',
                '|',
                '\n',
                '\n\n# ',
                '\n---\n',
                '```',
                '`',
                '**',
                '_a_',
                '&lt;b&gt;',
                '&#60;b',
                '-->',
                '</code>',
                '<http://evil>',
                '"',
                "'",
                '\\',
                '$x$',
                '1. ',
                '- ',
                '> ',
                '===',
                '\u2028',
                '\x00',
            ]
        ),
        max_size=6,
    ).map(''.join),
)


def page_of(facts, text, folder):
    "The tags of a card in which every text from outside is `text`."
    told = replace(
        facts,
        workspace=text,
        split=text,
        base_model=text,
        original_base=f'of {text}',
        versions={text: text},
        card_versions={text: f'{text}2'},
        judges=dict(detectors=[[text, text, 1]], scorers=[]),
        left_out={s: [(text, 1, 1.0)] for s in ('easy', 'normal', 'hard')},
        stated=replace(
            facts.stated,
            **{k: [(text, 1, 1.0)] for k in ('licence', 'consent', 'minors', 'release', 'source')},
            attributes=[(text, 1)],
            tags=[(text, 1)],
        ),
        flags=[
            dict(
                flag=text,
                source=text,
                rule=text,
                status=text,
                images=1,
            )
        ],
        leakage=replace(
            facts.leakage,
            compared={
                text: dict(
                    measure=text,
                    limit=8,
                    photos=1,
                    at=text,
                )
            }
        ),
    )
    return Tags(to_html(card_text(told, dict.fromkeys(CARD_QUESTIONS, text)), folder, text))


@settings(max_examples=60, deadline=None)
@given(HOSTILE)
def test_text_from_captions_and_metadata_stays_text(lived_in, facts, text):
    folder = lived_in.root/'splits'/'v1'
    page, calm = (page_of(facts, t, folder) for t in (text, 'word'))
    # no tag more or less than with a harmless word
    assert page.seen == calm.seen, text
    assert not [
        a
        for a in page.attrs
        if a[0].startswith('on') or (a[0] in ('src', 'href') and not a[1].startswith(('#', 'data:image/png')))
    ], text


@settings(max_examples=100, deadline=None)
@given(HOSTILE)
def test_escaped_text_reads_as_it_was_written(text):
    from markdown_it import MarkdownIt
    from html import unescape
    shown = MarkdownIt('commonmark', dict(html=True)).enable('table').render(f'x {escape(text)} x')
    plain = ''.join(c for c in ' '.join(text.split()) if c.isprintable())
    assert unescape(re.sub('<[^>]*>', '', shown)).split() == f'x {plain} x'.split()


@settings(max_examples=40, deadline=None)
@given(HOSTILE)
def test_the_yaml_head_and_the_answers_file_hold_any_text(tmp_path_factory, text):
    from huggingface_hub import DatasetCardData
    from hgdpo_curate import create_workspace
    from hgdpo_curate.document.licences import hub_licence
    head = DatasetCardData(**hub_licence(text or None), pretty_name=text).to_yaml()
    assert yaml.safe_load(head)['pretty_name'] == text and '\n---' not in head
    ws = create_workspace(tmp_path_factory.mktemp('a')/'ws')
    words = ' '.join(''.join(c for c in text if c.isprintable()).split())
    answer(ws, purpose=words, biases=words)
    write_questions(ws)
    assert read_answers(ws) == ({k: words for k in ('purpose', 'biases')} if words.strip() else {})


# --- pictures

def test_a_card_shows_no_photograph_and_no_reconstruction_unless_told(lived_in, copy_of, tmp_path, monkeypatch):
    ws = copy_of(lived_in)
    data, im = load_split(ws), ws.table('images').set_index('path').domain
    opened = []
    real = type(ws).open_image
    monkeypatch.setattr(type(ws), 'open_image', lambda self, p: opened.append(im[p]) or real(self, p))
    assert draw_pairs(ws, data, tmp_path / 'x.png', False) == ['easy loser', 'easy winner'] and set(opened) == {
        'generated'
    }
    assert 'photo' in draw_pairs(ws, data, tmp_path/'x.png', True) and {'real', 'generated'} <= set(opened)
    facts = ws.table('photo_facts')
    # no longer known to be drawings
    ws.append('photo_facts', facts.assign(source='my camera').drop(columns='written_at'))
    for with_photos, want in ((False, {'generated'}), (True, {'real', 'generated'})):
        opened.clear()
        make_card(ws, with_photos=with_photos)
        # the model card is written again; its pictures are generated too
        assert want <= set(opened) and (with_photos or set(opened) == want | {'evaluation'})
    opened.clear()
    write_model_card(ws, 'r')
    assert set(opened) <= {'evaluation'}


def test_the_page_asks_nothing_of_the_network(lived_in):
    page = lived_in.root/'splits'/'v1'/'card.html'
    tags = Tags(page.read_text())
    assert (
        all(v.startswith(('data:image/png;base64,', '#')) for k, v in tags.attrs if k in ('src', 'href'))
        and 'script' not in tags.seen
        and "default-src 'none'" in page.read_text()
    )
    # a telephone, a notebook's output, a desk
    seen_alone(page, (400, 850, 1300))


def test_cards_of_a_broken_split_and_of_its_run_say_so(lived_in, copy_of):
    ws = copy_of(lived_in)
    one = winner(ws)
    forget(ws, one['photo'], app=False, progress=quiet)
    assert (
        '**Broken by removal.**' in (ws.root / 'splits' / 'v1' / 'README.md').read_text()
        and 'Broken by removal' in (ws.root / 'data_cards' / 'v1.html').read_text()
    )
    assert '**Trained on a removed photo.**' in (ws.root/'runs'/'r'/'final'/'README.md').read_text()
    assert one['pair'] not in read_pairs(ws.root/'splits'/'v1'/'croissant.json').pair_id.tolist()


def test_a_card_says_when_consent_was_taken_back_after_the_split_was_frozen(lived_in, copy_of):
    from hgdpo_curate import UserError, load_split, make_card
    ws = copy_of(lived_in)
    assert 'No longer usable' not in make_card(ws).path.read_text()
    photo = ws.table('prompts').set_index('prompt_id').real_image_id[load_split(ws)['easy'].prompt_id[0]]
    ws.append(
        'photo_facts',
        ws.table('photo_facts', only=('image_id', [photo])).drop(columns='written_at').assign(consent='withdrawn'),
    )
    with pytest.raises(UserError, match='may no longer be used'): load_split(ws)
    assert 'it has been stated for 1 photos' in make_card(ws).path.read_text()


def test_wrong_names_are_one_sentence(lived_in, capsys):
    for argv, word in ((['--split', 'v9'], 'v9'), (['--run', 'none'], 'hgdpo train')):
        assert main(['card', '--workspace', str(lived_in.root), *argv]) == 1
        err = capsys.readouterr().err
        assert word in err and 'Traceback' not in err
    assert main(['card']) == 2


def test_the_cards_of_the_package_are_what_its_files_and_code_say(tmp_path):
    from huggingface_hub import DatasetCard, ModelCard
    from hgdpo_curate.document.shipped import write_shipped_cards
    shutil.copy(ROOT/'data_cards'/'measured.json', tmp_path)
    for f in write_shipped_cards(tmp_path):
        assert f.read_text() == (ROOT/'data_cards'/f.name).read_text(), f'{f.name} is stale; run: hgdpo card --package'
    for words in (
        'Motivation',
        'Composition',
        'Collection',
        'Consent, licences, takedown',
        'Preprocessing',
        'Annotation',
        'Uses',
        'Biases',
        'Distribution',
        'Maintenance',
    ):
        assert f'\n## {words}\n' in (tmp_path/'mannequins.md').read_text(), words
    assert '**Forbidden.** Identifying people' in (tmp_path/'mannequins.md').read_text()
    assert (
        DatasetCard.load(tmp_path / 'mannequins.md').data.license == 'cc0-1.0'
        and ModelCard.load(tmp_path / 'base.md').data.to_dict()['library_name'] == 'diffusers'
    )


# --- how a card looks

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def test_figures_stand_at_the_right_and_words_at_the_left(lived_in):
    text = (lived_in.root/'splits'/'v1'/'README.md').read_text()
    assert '| stage | pairs | winner | loser | prompts without a pair |\n|---|---:|---|---|---:|' in text
    assert '| file | SHA-256 |\n|---|---|' in text                             # hashes are no figures
    assert 'text-align:right' in (lived_in.root/'splits'/'v1'/'card.html').read_text()


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here; install it (apt-get install chromium) to look at cards')
def test_tables_of_cards_fit_their_page(lived_in, tmp_path):
    "In a browser: nothing is cut off or scrolled, on a screen, on a tablet and on paper; no word is broken."
    from playwright.sync_api import sync_playwright
    run = lived_in.root/'runs'/'r'
    text = (run/'README.md').read_text().split('---\n', 2)[2]
    (tmp_path/'run.html').write_text(to_html(text, run, 'r'))
    wide = (
        '[...document.querySelectorAll("table")].filter(t => t.scrollWidth > t.parentElement.clientWidth)'
        '.map(t => t.rows[0].innerText)'
    )
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page()
        for file in (lived_in.root/'splits'/'v1'/'card.html', tmp_path/'run.html'):
            page.goto(f'file://{file}')
            assert page.locator('table').count() >= 5
            for width, media in ((1300, 'screen'), (820, 'screen'), (720, 'print')):
                page.emulate_media(media=media)
                page.set_viewport_size(dict(width=width, height=900))
                assert page.evaluate(wide) == [], (file.name, width)
                assert page.evaluate('document.documentElement.scrollWidth') <= width
            page.emulate_media(media='screen')
            page.set_viewport_size(dict(width=420, height=900))
            assert page.evaluate('document.documentElement.scrollWidth') <= 420  # tables scroll inside themselves
        browser.close()


def test_the_data_card_says_how_photos_were_fitted(lived_in, copy_of, tmp_path):
    from hgdpo_curate import make_card
    ws = copy_of(lived_in)
    facts = ws.table('photo_facts')
    n = len(facts)
    told = f'Of {n} photos 0 were cropped, 0 lose the head or a part of it, 0 the feet, 0 a side of the person, and 0 '
    assert f'{told}were padded with a plain colour.' in make_card(ws)[0].read_text()
    # one padded, one that loses its feet, one that loses its head and much at the sides, one of an older import
    box, windows = [2, 2, 38, 54], [[-5, 0, 45, 56], [0, 0, 40, 40], [10, 20, 40, 56], None]
    ws.append('photo_facts', [
        r | dict(fit=w, box=box, photo_width=40, photo_height=56)
        for r, w in zip(facts.drop(columns='written_at').to_dict('records'), windows)
    ])
    card, _ = make_card(ws)
    words = f'Of {n - 1} photos 2 were cropped, 1 loses the head or a part of it, 1 the feet, 1 a side of the person' \
        ', and 1 was padded with a plain colour. Of 1 photo it was not recorded.'
    assert words in card.read_text() and words in (card.parent/'croissant.json').read_text()
    assert json.loads((card.parent/'facts.json').read_text())['fit']['padded'] == 1


def test_parts_generated_anew_are_counted_by_part_and_by_whom_and_pairs_have_masks(finished, copy_of, tmp_path):
    from hgdpo_curate import freeze_split
    ws = copy_of(finished)
    one, other = ws.table('prompts').query("fold == 'train'").real_image_id[:2]
    hand, foot = a_part_anew(ws, one), a_part_anew(ws, one, 'foot', '', mask=(.5, .8, .8, 1.), drawn_by='person:anna')
    a_part_anew(ws, other, score=2., drawn_by='person:ben')                      # nothing calls that one worse
    ws.append('detections', [nothing_seen(one) | dict(detector='hands')])
    folder = freeze_split(ws, 'with-local', 'chance')
    text, facts = make_card(ws, 'with-local').path.read_text(), split_facts(ws, 'with-local')
    counts = [tuple(r.values()) for r in facts.redrawn]
    assert counts == [('foot', 'a person', 1, 1), ('hand', 'a person', 1, 0), ('hand', 'hands', 1, 1)]
    assert facts.pairs['local'] == 2 and facts.levels['local'] == [('photo', 2)] and facts.margins['local'].pairs == 2
    for row in ('| hand | hands | 1 | 1 |', '| foot | a person | 1 | 1 |', '| local | 2 | photo, or'):
        assert row in text
    assert 'pictures with one part generated anew' in text and 'holds for them too' in text
    written = [f.read_text() for f in card_files(ws, 'with-local') if f.suffix in ('.md', '.json', '.html')]
    assert len(written) > 5 and not [w for w in written if re.search(r'person:(anna|ben)|\banna\b', w)]
    assert 'One part (foot, hand) generated anew in 3 pictures.' in (folder/'croissant.json').read_text()
    shown = read_pairs(folder/'croissant.json', 'local').set_index('loser_id')['mask']
    assert {i: [*m] for i, m in shown.items()} == {hand: [.1, .5, .4, .8], foot: [.5, .8, .8, 1.]}
    data = load_split(ws, 'with-local')
    assert 'local loser' in draw_pairs(ws, data, tmp_path/'p.png', True)
    assert 'local loser' not in draw_pairs(ws, data, tmp_path/'p.png', False)    # it shows the photo
    before = split_facts(ws)                                                     # of a split without local pairs
    assert 'local' not in before.pairs and [r['pairs'] for r in before.redrawn] == [0, 0, 0]
    ws.append('photo_facts', [dict(image_id=one, consent='withdrawn')])
    freeze_split(ws, 'without', 'chance')
    without = load_split(ws, 'without')                                          # the photo's consent counts
    assert 'local' not in without or not {hand, foot} & {*without['local'].loser_id}
