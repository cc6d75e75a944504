"""The main job, from a folder of pictures to a LoRA, on the mannequins."""
import pytest
from conftest import quiet


@pytest.mark.usefixtures('mongo')
def test_the_demo_runs_whole_and_a_second_time_does_nothing_twice(tmp_path, capsys):
    from hgdpo_curate import open_workspace, run_demo
    ws = open_workspace(run_demo(tmp_path/'demo', quick=True, progress=quiet))
    out = capsys.readouterr().out
    for words in ('| base |', '| hard + text encoder |', 'pool picture', 'grid', 'LoRA', 'card', 'model card', 'hgdpo curate --workspace'): assert words in out
    run = ws.root/'runs'/'demo'
    for f in ('final/pytorch_lora_weights.safetensors', 'final/kohya_lora_weights.safetensors', 'evaluation/table.md', 'evaluation/grid.png', 'evaluation/pool.png', 'easy/curves.png', 'README.md', 'final/README.md'): assert (run/f).exists(), f
    card = (ws.root/'splits'/'v1'/'README.md').read_text()
    assert 'Incomplete' in card and 'CC0-1.0' in card
    made = {p: p.stat().st_mtime_ns for p in (ws.root/'images').rglob('*.png')}
    run_demo(tmp_path/'demo', quick=True, app=False, progress=quiet)
    assert {p: p.stat().st_mtime_ns for p in (ws.root/'images').rglob('*.png')} == made
