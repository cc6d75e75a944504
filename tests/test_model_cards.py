"""Cards of runs: what a LoRA is, what measured it, what its parts' licences allow, and lines to load it that run."""
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
from conftest import quiet
from test_cards import answer

from hgdpo_curate import make_card, write_model_card
from hgdpo_curate.cli import main
from hgdpo_curate.document.answers import CARD_QUESTIONS
from hgdpo_curate.files import read_json
from hgdpo_curate.runs import RunConfig


def test_the_model_card_loads_travels_and_names_licences(lived_in, copy_of):
    from huggingface_hub import ModelCard
    ws = copy_of(lived_in)
    answer(ws, base_licence='CreativeML Open RAIL-M', base_commercial='no', model_licence='apache-2.0')
    file = write_model_card(ws, 'r').path
    card = ModelCard.load(file)
    assert (
        card.data.to_dict()['library_name'] == 'diffusers'
        and card.data.license == 'apache-2.0'
        and (ws.root / 'runs' / 'r' / 'final' / 'README.md').read_text() == file.read_text()
    )
    split = read_json(ws.root/'splits'/'v1'/'split.json')
    for words in (
        split['content']['easy'],
        'CreativeML Open RAIL-M',
        'insightface',
        'non-commercial research only',
        'proposed flags',
        'train on a base whose licence allows your use',
        'not measured',
        'ComfyUI',
        'near pure noise',
        'What a plain file cannot store',
    ):
        assert words in card.text, words
    assert str(ws.root) not in card.text and str(Path(ws.base_model).parent) not in card.text
    t = (
        pd.read_parquet(ws.root / 'runs' / 'r' / 'evaluation' / 'table.parquet')
        .query("arm == 'easy' and metric == 'score'")
        .iloc[0]
    )
    assert f'{t.value:.3g} [{t.low:.3g}, {t.high:.3g}]' in card.text


def test_a_model_card_names_the_data_card_as_it_is_now(lived_in, copy_of):
    ws = copy_of(lived_in)
    answer(ws, title='Another name')
    card = make_card(ws)
    sha = hashlib.sha256(card.path.read_bytes()).hexdigest()
    for place in ('r', 'r/final'): assert sha in (ws.root/'runs'/place/'README.md').read_text()
    assert 'title' not in card.missing and card.missing == [q for q in CARD_QUESTIONS if q != 'title']


def test_the_small_scorer_is_the_packages_only_where_its_weights_are(lived_in):
    from hgdpo_curate import load_scorer
    from hgdpo_curate.document.licences import components
    from hgdpo_curate.document.contents import read_split
    config, data = RunConfig.of(lived_in.root/'runs'/'r'), read_split(lived_in)
    image = (
        lived_in.table('images')
        .query("domain == 'generated'")
        .merge(pd.DataFrame(dict(prompt_id=data['easy'].prompt_id)), on='prompt_id')
        .image_id.iloc[0]
    )
    def scorer(version):
        class Scored:
            root, config = lived_in.root, lived_in.config
            def table(self, name, **k):
                return (
                    lived_in.table(name, **k)
                    if name != 'scores'
                    else pd.DataFrame(
                        [
                            dict(
                                image_id=image,
                                scorer='smallscore',
                                scorer_version=version,
                                score=1.0,
                            )
                        ]
                    )
                )
        return next(c for c in components(Scored(), config, data, {}) if c['name'] == 'smallscore')
    assert (
        scorer(load_scorer('smallscore').version)['what'] == 'small scorer of the package'
        and 'other images' in scorer('1234abcd')['what']
    )


def test_an_evaluation_says_what_measured_it_and_the_card_names_those_licences(lived_in, copy_of):
    from hgdpo_curate.document.contents import read_split
    from hgdpo_curate.document.licences import about, components
    from hgdpo_curate.image_models import WEIGHTS
    from hgdpo_curate.registry import licence_of
    file = lived_in.root/'runs'/'r'/'evaluation'/'measured_by.json'
    by = read_json(file)
    assert (
        [m['name'] for m in by['scorers']] == ['chance']
        and by['extractor'][0]['name'] == 'evaluator' == by['evaluator'][0]['name']
        and by['extractor'][0]['version']
        and not by['recogniser']
    )
    ws = copy_of(lived_in)
    file = ws.root/'runs'/'r'/'evaluation'/'measured_by.json'
    file.write_text(
        json.dumps(
            by
            | dict(
                recogniser=[dict(name='arcface', version='1')],
                extractor=[dict(name='inception', version='1')],
                detectors=[dict(name='clip', version='1')],
                scorers=[
                    *by['scorers'],
                    dict(name='pickscore', version='1'),
                    dict(name='clipiqa_quality', version='1'),
                ],
            )
        )
    )
    config, data = RunConfig.of(ws.root/'runs'/'r'), read_split(ws)
    parts = {(c['part'], c['name']): c for c in components(ws, config, data, {})}
    assert (
        parts['metric', 'arcface']['commercial'] == 'no'
        and parts['metric', 'inception']['licence'] == WEIGHTS['inception'].licence
        and parts['metric', 'evaluator']['what'] == 'small evaluator of the package'
    )
    assert (
        parts['metric', 'clip']['what'] == 'CLIP by LAION, ViT-B/32'
        and parts['detector', 'insightface']
        and parts['scorer', 'chance']['commercial'] == 'unknown'
    )
    for n in WEIGHTS: assert about(n)['licence'] == licence_of(n)['licence'], n     # one truth for reports and cards
    assert about('clipiqa_quality')['licence'] == licence_of('clip')['licence']
    text = write_model_card(ws, 'r').path.read_text()
    assert '**metric arcface**' in text and licence_of('pickscore')['stated'] in text
    file.unlink()
    assert 'not recorded' in write_model_card(ws, 'r').path.read_text()          # an evaluation from before this file


def test_strict_asks_of_a_model_card_only_what_stands_on_it(lived_in, copy_of, capsys):
    ws = copy_of(lived_in)
    go = ['card', '--workspace', str(ws.root), '--run', 'r', '--strict']
    answer(
        ws,
        base_licence='CreativeML Open RAIL-M',
        base_commercial='no',
        model_licence='apache-2.0',
        intended_uses='teaching',
    )
    assert main(go) == 1 and 'Incomplete: contact still' in capsys.readouterr().out
    answer(ws, contact='me@example.org')
    assert (
        main(go) == 0
        and 'Incomplete' not in (ws.root / 'runs' / 'r' / 'README.md').read_text()
        and main([g for g in go if g not in ('--run', 'r')]) == 1
    )


def test_the_failures_on_a_model_card_are_drawn_by_that_run(lived_in, copy_of):
    from conftest import Chance

    from hgdpo_curate import evaluate_runs, train_curriculum, write_model_card
    from hgdpo_curate.document.model_card import own_arms
    ws = copy_of(lived_in)
    train_curriculum(
        ws,
        run='other',
        preset='mannequin',
        train_batch_size=2,
        max_train_steps=1,
        seed=5,
        report_to='none',
        progress=quiet,
    )
    evaluate_runs(
        ws,
        'other',
        per_prompt=1,
        arms=('base', 'easy'),
        scorer=Chance(),
        progress=quiet,
    )
    drawn = {r: set(ws.table('images').query("domain == 'evaluation'").model) & own_arms(ws, r) for r in ('r', 'other')}
    assert all(drawn.values()) and not drawn['r'] & drawn['other']
    for run in drawn:
        assert (
            'card/failures.png' in write_model_card(ws, run).path.read_text()
            and (ws.root / 'runs' / run / 'card' / 'failures.png').exists()
        )


def plain_diffusers(card, folder) -> dict: # the card's own lines, with its folder and a seed -> what they leave behind
    code = next(b for b in re.findall(r'```python\n(.*?)```', card, re.S) if 'load_lora_weights' in b)
    seeded = code.replace('guidance_scale=', 'generator=torch.Generator().manual_seed(1), guidance_scale=')
    assert seeded != code and '"FOLDER"' in code
    room = dict(torch=__import__('torch'))
    exec(seeded.replace('"FOLDER"', repr(str(folder))), room)
    return room


def test_the_diffusers_lines_of_the_model_card_run(lived_in):
    card = (lived_in.root/'runs'/'r'/'README.md').read_text()
    base = re.search(r"from_pretrained\(\s*'([^']+)'\)", card)[1]                # a folder, by its name only
    room = plain_diffusers(card.replace(base, lived_in.base_model), lived_in.root/'runs'/'r'/'final')
    assert room['image'].size == lived_in.size and room['pipe'].get_active_adapters() == ['hgdpo']


def test_the_cards_lines_make_the_toolkits_image_on_the_base_of_drawn_people(tmp_path):
    "The text encoder's part is left out: a plain file cannot store when it acts."
    import numpy as np
    import torch

    from hgdpo_curate import load_for_inference, load_preset
    from hgdpo_curate.adapters import save_lora
    from hgdpo_curate.document.model_card import loading, sampler_arguments
    from hgdpo_curate.pipelines import pipeline_folder
    from hgdpo_curate.train.final_adapter import random_lora, write_final
    for stage, number in dict(normal=0, hard=1000).items():
        save_lora(tmp_path/'run'/stage, unet=random_lora(pipeline_folder('mannequin'), 'unet', seed=number))
    preset = load_preset('mannequin')
    rules = preset.inference.as_pool(preset.pool)
    write_final(tmp_path/'run', rules, False)
    asked = dict(pool=dict(resolution=preset.pool.resolution), stages=[], inference=rules.__dict__)
    card = loading(
        RunConfig(asked, 'mannequin'), 'StableDiffusionPipeline', sampling=sampler_arguments('mannequin')
    )
    def apart(a, b): return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()
    def toolkit(run):
        pipe = load_for_inference('mannequin', run, rules, device='cpu')
        generator = torch.Generator().manual_seed(1)
        return pipe('a photo of a person', width=40, height=56, generator=generator).images[0]
    wanted, plain = toolkit(tmp_path/'run'), plain_diffusers(card, tmp_path/'run'/'final')
    assert plain['image'].size == (40, 56) and apart(plain['image'], wanted) <= 1          # as a CPU rounds
    assert apart(toolkit(None), wanted) > 1
    # what the base was saved with makes another image, so the card has to name the spacing
    silent = card.replace(', timestep_spacing="linspace"', '')
    assert silent != card and apart(plain_diffusers(silent, tmp_path/'run'/'final')['image'], wanted) > 1


def test_the_lines_of_the_card_name_the_bases_pipeline_and_what_a_plain_file_lacks(tmp_path):
    from hgdpo_curate.document.model_card import diffusers_class, loading
    rules = dict(
        lora_weight=0.5,
        steps=50,
        guidance=5.0,
        text_encoder_from=900,
        text_encoder_to=1000,
        up_blocks='easy',
        other_blocks='easy',
        lan=True,
    )
    config = RunConfig(dict(pool=dict(resolution='1024'), stages=[], inference=rules), str(tmp_path))
    (tmp_path/'model_index.json').write_text(json.dumps(dict(_class_name='StableDiffusionXLPipeline')))
    text = loading(config, diffusers_class(str(tmp_path)))
    assert (
        'from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline\n' in text
        and 'StableDiffusionXLPipeline.from_pretrained' in text
        and 'StableDiffusionPipeline' not in text
    )
    assert '\n- latent adaptive normalisation (LAN)' in text and 'LAN' not in loading(
        replace(config, preset=config.preset | dict(inference=rules | dict(lan=False)))
    )
