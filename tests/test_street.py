"""The whole way on 24 real photographs, with networks trained on them; real parts, far too few steps to be good."""
import json
import shutil

import pytest
from conftest import plain, quiet


@pytest.mark.usefixtures('mongo')
def test_the_whole_way_on_24_photographs(test_data, tmp_path):
    from hgdpo_curate import (
        create_workspace,
        evaluate_runs,
        flag_images,
        freeze_split,
        generate_pool,
        import_photos,
        make_card,
        reconstruct,
        score_images,
        train_curriculum,
        train_tiny,
    )
    source, folder = test_data/'photos'/'street', tmp_path/'photos'
    folder.mkdir()
    lines = (source/'metadata.jsonl').read_text().splitlines()[:24]
    for x in lines: shutil.copy(source/json.loads(x)['file_name'], folder)
    (folder/'metadata.jsonl').write_text('\n'.join(lines))
    ws = create_workspace(tmp_path/'ws', resolution='40x56', steps=4, test_share=.25)
    assert import_photos(ws, folder, progress=plain).imported == 24
    found = train_tiny(
        ws,
        steps=dict(
            vae=30,
            base=30,
            scorer=20,
            evaluator=20,
        ),
        progress=lambda it, *a: it,
    )
    assert (
        found['anatomy_failures'] == 'not measured'
        and found['right_over_wrong']['low'] < found['right_over_wrong']['high']
    )
    generate_pool(ws, 3, progress=quiet)
    reconstruct(ws, progress=quiet)
    score_images(ws, progress=quiet)
    flag_images(
        ws,
        'yunet',
        test_data / 'models' / 'yunet_n_320_320.onnx',
        ('real',),
        progress=quiet,
    )
    assert ws.table('detections').image_id.nunique() == 24
    freeze_split(ws)
    train_curriculum(
        ws,
        preset='tiny-photos',
        run='r',
        progress=quiet,
        max_train_steps=2,
        train_batch_size=2,
    )
    table = evaluate_runs(ws, 'r', per_prompt=1, progress=quiet)
    assert table[table.metric == 'anatomy_failures'].value.isna().all()          # no truth, no number
    assert 'not measured' in (ws.root/'runs'/'r'/'evaluation'/'table.md').read_text()
    from hgdpo_curate import build_dataset
    ds = build_dataset(ws)
    assert len(ds.load_saved_view('pool: by prompt')) == (ws.table('prompts').fold == 'train').sum()
    ds.delete()
    card, missing = make_card(ws)
    assert 'unknown' in card.read_text() and missing
