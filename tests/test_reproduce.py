"""A table of the paper at its smallest size, by the command that a user types.

Every arm is trained and measured, and what a table must say it says. What the orderings came to is in
benchmarks/RESULTS.md.
"""
import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, quiet

from hgdpo_curate import UsageError, load_split, open_workspace
from hgdpo_curate.evaluate.paper_tables import STAGES_TABLE
from hgdpo_curate.evaluate.reproduce import reproduce_table


@pytest.fixture(scope='module')
def tables(tmp_path_factory):
    from hgdpo_curate.cli import main
    folder = tmp_path_factory.mktemp('tables')/'tables'
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(['evaluate', '--workspace', str(folder), '--table', 'stages', '--quick']) == 0
    return folder, said.getvalue()


def test_every_arm_is_trained_once_and_measured_on_the_same_fresh_prompts(tables):
    folder, said = tables
    figures = pd.read_parquet(folder/'stages'/'seed-11.parquet')
    plain = figures[figures.against == '']
    assert set(plain.arm) == {r.name for r in STAGES_TABLE.rows} and set(figures.images) == {12}
    assert (
        plain[plain.metric.isin(['score', 'frechet', 'anatomy_failures', 'prompt_accuracy', 'detail', 'sharpness'])]
        .value.notna()
        .all()
    )
    gains = figures[figures.against != '']
    assert {(o.better, o.worse, o.metric) for o in STAGES_TABLE.orderings} == set(
        zip(gains.arm, gains.against, gains.metric)
    ) and gains.value.notna().all()
    ws = open_workspace(folder/'seed-11')
    split = load_split(ws)
    assert not {*split['test'].prompt_id} & {*split['easy'].prompt_id}
    one, other = (ws.root/'runs'/r/'easy'/'metrics.parquet' for r in ('curriculum', 'sft_after_normal'))
    # the easy stage of the one is that of the other, not trained again
    assert one.read_bytes() == other.read_bytes()
    bases = {
        json.loads(f.read_text())['base_hash'] for f in ws.root.glob('runs/*/config.json') if f.parent.name != 'sft'
    }
    # one base per seed, fine-tuned on its photos, for all arms
    assert len(bases) == 1 and 'sft' in ws.config['base_model']


def test_the_table_says_what_is_missing_and_shows_the_papers_figures_beside(tables):
    folder, said = tables
    assert 'One seed only' in said or 'one seed' in said.lower()
    said = (folder/'stages'/'table.md').read_text()
    assert 'not yet run: 12, 13, 14, 15' in said and 'One seed only' in said and '| naive | 17.93 | 112.67 |' in said
    assert all(f'| {o} | **' in said for o in STAGES_TABLE.orderings)
    from test_demo import assert_tables_are_whole
    assert_tables_are_whole((folder/'stages'/'table.md').read_text())
    for name in ('table.md', 'table.parquet', 'points.png', 'grid-11.png', 'log-11.parquet'):
        assert (folder/'stages'/name).stat().st_size > 100


def test_directions_that_hold_at_any_size(tables):
    """Of the data: winners come closer to their photos from stage to stage.

    Of the training: each stage learns to prefer its winners. Of the rules: the text encoder's LoRA acts near noise
    only, so it changes less than the stages do.
    """
    from hgdpo_curate.evaluate.features import load_pixels
    folder, _ = tables
    ws = open_workspace(folder/'seed-11')
    split, im = load_split(ws), open_workspace(folder/'seed-11').table('images')
    photo = im[im.domain == 'real'].drop_duplicates('prompt_id').set_index('prompt_id').path
    far = lambda pairs, who: np.abs(
        load_pixels(ws, pairs[f'{who}_path']).astype(float) - load_pixels(ws, photo.loc[pairs.prompt_id])
    ).mean()
    # t1, t4..t7, plain generation
    assert far(split['hard'], 'winner') < far(split['hard'], 'loser') < far(split['normal'], 'loser')
    assert (split['easy'].winner_score > split['easy'].loser_score).all() and (
        split['normal'].winner_score >= split['normal'].loser_score
    ).all()
    log = pd.read_parquet(ws.root/'runs'/'curriculum'/'easy'/'metrics.parquet')
    assert abs(log.loss[0] - np.log(2)) < 1e-4 and log.margin.tail(4).mean() > 0
    rgb = (
        pd.read_parquet(folder / 'stages' / 'seed-11.parquet')
        .query("metric == 'rgb_distance' and against == ''")
        .set_index('arm')
        .value
    )
    assert (
        rgb['base'] == 0 < abs(rgb['hard + text encoder'] - rgb['hard']) + 1e-9
        and abs(rgb['hard + text encoder'] - rgb['hard']) < rgb['hard']
    )


def test_a_finished_table_is_only_read_and_a_folder_keeps_its_size(tables):
    folder, _ = tables
    before = {f: f.stat().st_mtime_ns for f in folder.rglob('*.safetensors')}
    reproduce_table(folder, 'stages', quick=True, progress=quiet)
    assert before == {f: f.stat().st_mtime_ns for f in folder.rglob('*.safetensors')}
    with pytest.raises(UsageError, match='another --workspace'): reproduce_table(folder, 'stages', progress=quiet)


def test_the_published_figures_are_those_of_the_seeds_that_are_kept():
    from hgdpo_curate.evaluate.paper_tables import TABLES
    from hgdpo_curate.evaluate.reproduce import read_figures
    from hgdpo_curate.evaluate.verdicts import table_markdown
    results, kept = (ROOT/'benchmarks'/'RESULTS.md').read_text(), ROOT/'benchmarks'/'tables'
    names = [n for n in TABLES if list((kept/n).glob('seed-*.parquet'))]
    said = {n: table_markdown(TABLES[n], read_figures(kept, n)) for n in names}
    for text in said.values():
        for line in text.splitlines(): assert line in results, line
    shown, missing, reverse = (said['stages'].count(f'| **{word}** |') for word in ('shown', 'not shown', 'reversed'))
    total = shown + missing + reverse
    outcome = f'Of {total} orderings of the paper {shown} are shown, {missing} are not shown, {reverse} are reversed'
    seeds = ', '.join(map(str, sorted(read_figures(kept, 'stages').seed.unique())))
    readme = ' '.join((ROOT/'README.md').read_text().split())
    assert outcome in readme and f'seeds finished: {seeds}' in readme
