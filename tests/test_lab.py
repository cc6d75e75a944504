"""Bars and objects as a notebook shows them, and notebooks run in a real JupyterLab in a real browser."""
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, quiet
from lab import CHROMIUM, run_in_lab

COUNT = ("from hgdpo_curate.show import progress_bar\nwith progress_bar(5, 'counting', done=2) as update:\n    for "
         "_ in range(3): update(1)")


@pytest.fixture
def notebook(tmp_path):
    def write(*cells):
        nb = nbformat.v4.new_notebook(
            metadata=dict(kernelspec=dict(name='python3', display_name='Python 3')),
            cells=[nbformat.v4.new_code_cell(c) for c in cells],
        )
        nbformat.write(nb, tmp_path/'some.ipynb')
        return tmp_path/'some.ipynb'
    return write


def outputs_of(path):
    from nbclient import NotebookClient
    nb = nbformat.read(path, 4)
    NotebookClient(nb, allow_errors=True, resources={'metadata': {'path': str(ROOT)}}).execute()
    return [c.outputs for c in nb.cells]


def test_a_bar_in_a_notebook_is_html_that_stays_when_it_is_saved(notebook):
    (bar,), (stopped, error) = outputs_of(
        notebook(COUNT, "with progress_bar(9, '<b>') as update:\n    update(4); raise ValueError('halt')")
    )
    # no widget
    assert (
        '5 of 5' in bar.data['text/html']
        and 'counting' in bar.data['text/html']
        and set(bar.data) == {'text/html', 'text/plain'}
    )
    assert (
        '4 of 9' in stopped.data['text/html']
        and 'stopped' in stopped.data['text/html']
        and '&lt;b&gt;' in stopped.data['text/html']
    )
    assert error.ename == 'ValueError'


def test_a_bar_in_a_log_file_is_a_few_lines():
    many = (
        COUNT.replace('5,', '4000,')
        .replace('range(3)', 'range(3998)')
        .replace('update(1)', '(__import__("time").sleep(.0003), update(1))')
    )
    done = subprocess.run([sys.executable, '-c', many], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and '4000/4000' in done.stderr and done.stderr.count('\r') < 6, done.stderr


def test_a_workspace_shows_its_state_and_the_next_step(finished, copy_of):
    from hgdpo_curate import create_workspace
    ws = copy_of(finished)
    shown = ws._repr_html_()
    pool = sum(ws.table('images').domain == 'generated')
    assert (
        '40 × 56' in shown and f'<td>{pool}</td>' in shown and 'splits: v1' in shown and 'train_curriculum(ws)' in shown
    )
    (ws.root/'runs'/'first'/'easy').mkdir(parents=True)                        # a run is one once a stage was begun
    assert 'runs: first' in ws._repr_html_() and 'next:' not in ws._repr_html_()
    fresh = create_workspace(ws.root.parent/'<i>new', resolution='40x56')._repr_html_()
    assert 'import_photos(ws, folder)' in fresh and '<i>' not in fresh and 'no images yet' in fresh


def test_a_terminal_is_told_the_next_step_too(finished, copy_of, tmp_path, capsys):
    from hgdpo_curate.cli import main
    assert main(['init', '--workspace', str(tmp_path/'new'), '--resolution', '40x56']) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f'next: hgdpo photos --workspace {tmp_path/"new"} --folder PHOTOS'
    main(['status', '--workspace', str(tmp_path/'new')])
    said = capsys.readouterr().out
    assert 'no images yet' in said and 'hgdpo photos' in said and 'Empty DataFrame' not in said
    main(['status', '--workspace', str(copy_of(finished).root)])
    assert 'hgdpo train --workspace' in capsys.readouterr().out


def test_a_split_shows_what_it_holds_and_is_a_dict_as_before(finished, copy_of):
    from hgdpo_curate import forget, load_split
    from hgdpo_curate.document.contents import read_split
    ws = copy_of(finished)
    split = load_split(ws)
    shown = split._repr_html_()
    assert (
        'split v1' in shown
        and 'verified when read' in shown
        and f'{len(split["test"])} test prompts' in shown
        and f'naive {len(split["naive"])}' in shown
    )
    assert not any(caption in shown for caption in split['easy'].prompt) and '<img' not in shown
    assert {**split, 'easy': 0}['easy'] == 0 and (split | dict(easy=0)).keys() == split.keys()
    forget(ws, split['easy'].winner_id[0], app=False, progress=quiet)
    assert 'broken by removal' in read_split(ws)._repr_html_()


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here; install it (apt-get install chromium) to run '
                                             'notebooks in JupyterLab')
def test_a_notebook_runs_in_jupyterlab_as_a_person_would_run_it(notebook, tmp_path):
    seen = run_in_lab(
        notebook('print("line\\n"*90)', COUNT, '1/0', 'print("never reached")'), tmp_path / 'shots', seconds=120
    )
    assert [(n, e) for n, e in seen.errors] == [(2, 'ZeroDivisionError: division by zero')]
    assert (seen.cells, seen.finished) == (4, 2) and len(seen.shots) > 1 and not seen.warnings and not seen.outside, (
        seen
    )
