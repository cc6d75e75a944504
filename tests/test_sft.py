"""SFT makes the base; samples are drawn from it."""
import json

import pytest
import torch
from conftest import Chance, plain, quiet


def test_sft_is_fused_into_a_pipeline_folder_that_is_the_base_from_then_on(tmp_path, random_base, capsys):
    from hgdpo_curate import (
        UserError,
        create_workspace,
        freeze_split,
        generate_pool,
        import_photos,
        reconstruct,
        score_images,
        train_sft,
        write_model_card,
    )
    from hgdpo_curate.cli import main
    from hgdpo_curate.toy.drawings import export_photos
    from hgdpo_curate.adapters import read_lora
    from hgdpo_curate.document.facts import split_facts
    from hgdpo_curate.document.licences import original
    from hgdpo_curate.evaluate.candidates import named_arms
    from hgdpo_curate.pipelines import load_pipeline, model_hash
    from hgdpo_curate.runs import RunConfig
    ws = create_workspace(tmp_path/'ws', base_model=random_base, resolution='40x56', steps=2)
    import_photos(ws, export_photos(tmp_path/'photos', 5, seed=8), progress=plain)
    before = load_pipeline(random_base, 'cpu').unet.state_dict()
    folder = train_sft(
        ws,
        max_train_steps=3,
        train_batch_size=2,
        learning_rate=1e-2,
        rank=4,
        progress=quiet,
    )
    assert (
        ws.base_model == str(folder)
        and json.loads((folder / 'model_index.json').read_text())['_class_name'] == 'StableDiffusionPipeline'
    )
    after, lora = load_pipeline(folder, 'cpu').unet.state_dict(), read_lora(ws.root/'runs'/'sft'/'sft')['unet']
    name = next(k for k in lora if 'lora_A' in k).removesuffix('.lora_A.weight')
    delta = lora[f'{name}.lora_B.weight'] @ lora[f'{name}.lora_A.weight']
    assert (
        torch.allclose(after[f'{name}.weight'], before[f'{name}.weight'] + delta, atol=1e-5) and delta.abs().max() > 0
    )
    assert after.keys() == before.keys()                                          # no adapter is left in the base
    told = json.loads((ws.root/'runs'/'sft'/'sft.json').read_text())
    assert (
        told['base'] == str(random_base)
        and told['base_hash'] == model_hash(random_base)
        and told['model_hash'] == model_hash(folder)
        and told['photos'] == 4
    )
    assert not (ws.root/'runs'/'sft'/'config.json').exists()                      # it is no run of the curriculum
    with pytest.raises(UserError, match='has no runs yet'): named_arms(ws, ['base'])
    card, gaps = write_model_card(ws, 'sft')
    text = card.read_text()
    assert (
        (folder / 'README.md').read_text() == text
        and 'base_licence' in gaps
        and told['base_hash'] in text
        and "StableDiffusionPipeline.from_pretrained(\"FOLDER\")" in text
        and '4 photos | CC0-1.0' in text
        and 'The photos have changed' not in text
    )
    assert str(ws.root) not in text and main(['card', '--workspace', str(ws.root), '--run', 'sft']) == 0
    assert (
        original(ws, RunConfig(base=ws.config['base_model'], base_hash=model_hash(folder))) == str(random_base)
        and original(ws, RunConfig(base='x/y', base_hash='0')) == 'x/y'
    )
    ws.append(
        'reviews',
        [
            dict(
                subject_id=ws.table('prompts').query("fold == 'train'").real_image_id.iloc[0],
                decision='reject',
                reviewer='a',
                note='',
            )
        ],
    )
    assert 'The photos have changed' in write_model_card(ws, 'sft').path.read_text()
    ws.append(
        'reviews',
        [
            dict(
                subject_id=ws.table('prompts').query("fold == 'train'").real_image_id.iloc[0],
                decision='approve',
                reviewer='a',
                note='',
            )
        ],
    )
    assert train_sft(ws, progress=quiet) == folder                                # run again: it is the base already
    assert generate_pool(ws, 2, progress=quiet) == 8
    reconstruct(ws, progress=quiet)
    score_images(ws, Chance(), progress=quiet)
    freeze_split(ws, 'v1', 'chance')
    facts = split_facts(ws)
    # the licence that counts is the original's
    assert (facts.base_model, facts.original_base) == ('path/to/sft', f'path/to/{random_base.name}')
    assert main(['sample', '--workspace', str(ws.root), '--prompt', 'a person', '--per-prompt', '2']) == 0
    assert len(list((ws.root/'samples').glob('a-person-seed*.png'))) == 2
    with pytest.raises(UserError, match='pool already'): train_sft(ws, random_base, progress=quiet)
