"""The main job, from a folder of pictures to a LoRA, on the mannequins."""
import re

import pytest
from conftest import ROOT, quiet


def assert_tables_are_whole(text):
    """Every row of a Markdown table has the cells that its head has.

    A bar within a cell, as in |ΔRGB|, would make more of them.
    """
    tables = re.findall(r'(?:^\|.*\n?)+', text, re.M)
    assert tables
    for t in tables:
        assert len({len(re.findall(r'(?<!\\)\|', line)) for line in t.strip().splitlines()}) == 1, t.splitlines()[0]


def test_the_tables_in_the_documents_are_whole():
    for file in ('docs/paper.md', 'benchmarks/RESULTS.md'): assert_tables_are_whole((ROOT/file).read_text())


@pytest.mark.usefixtures('mongo')
def test_the_demo_runs_whole_and_a_second_time_does_nothing_twice(tmp_path, capsys):
    from hgdpo_curate import open_workspace, run_demo
    ws = open_workspace(run_demo(tmp_path/'demo', quick=True, progress=quiet))
    out = capsys.readouterr().out
    for words in (
        'base ',
        'hard + text encoder',
        'pool picture',
        'grid',
        'LoRA',
        'card',
        'model card',
        'hgdpo curate --workspace',
    ):
        assert words in out
    run = ws.root/'runs'/'demo'
    for f in (
        'final/pytorch_lora_weights.safetensors',
        'final/demo-demo.safetensors',
        'evaluation/table.md',
        'evaluation/grid.png',
        'evaluation/pool.png',
        'easy/curves.png',
        'README.md',
        'final/README.md',
    ):
        assert (run/f).exists(), f
    assert_tables_are_whole((run/'evaluation'/'table.md').read_text())
    card = (ws.root/'splits'/'v1'/'README.md').read_text()
    # the base is the package's, so its licence is known
    assert 'base_licence' not in card
    assert 'Incomplete' in card and 'CC0-1.0' in card
    made = {p: p.stat().st_mtime_ns for p in (ws.root/'images').rglob('*.png')}
    run_demo(tmp_path/'demo', quick=True, app=False, progress=quiet)
    assert {p: p.stat().st_mtime_ns for p in (ws.root/'images').rglob('*.png')} == made
