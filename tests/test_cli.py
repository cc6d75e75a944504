"""The command line: what it accepted once it accepts for good, and its help loads nothing heavy."""
import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import plain, ROOT

from hgdpo_curate import cli

ACCEPTED = json.loads((ROOT/'tests'/'data'/'flags_0.1.json').read_text())


def accepts(verb, flag, shape) -> bool:
    "Whether the verb's parser knows the flag, with a value, several, or none."
    if not flag.startswith('--'): return flag in {a.dest for a in cli.make_parser(verb)._actions}
    actions = {s: a for a in cli.make_parser(verb)._actions for s in a.option_strings}
    kinds = {
        0: 'switch',
        None: 'value',
        '+': 'several',
        '*': 'several',
    }
    return flag in actions and kinds[actions[flag].nargs] == shape


@pytest.mark.parametrize('verb', ACCEPTED)
def test_every_flag_of_the_first_version_is_still_accepted(verb):
    assert [f for f, shape in ACCEPTED[verb].items() if not accepts(verb, f, shape)] == []


def test_every_verb_names_a_function_that_is_there_and_says_what_its_flags_are():
    import importlib
    for name, verb in cli.VERBS.items():
        module, function = verb.function.rsplit('.', 1)
        assert callable(getattr(importlib.import_module(f'hgdpo_curate.{module}'), function))
        assert [flag or p.name for p, flag in cli.parameters_of(verb) if not p.comment] == [], name


@pytest.mark.parametrize('argv', [['--help'], ['photos', '--help'], ['train', '--help']], ids=' '.join)
def test_help_loads_nothing_heavy(argv):
    code = (
        'import sys\nfrom hgdpo_curate.cli import main\ncode = main(sys.argv[1:])\n'
        "heavy = {'torch', 'diffusers', 'fiftyone', 'transformers', 'pandas', 'numpy', 'matplotlib'} & "
        "set(sys.modules)\n"
        'assert code == 0 and not heavy, heavy'
    )
    done = subprocess.run([sys.executable, '-c', code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_folder_of_photos_may_stand_anywhere(tmp_path):
    want = dict(workspace='w', folder='p', skip_bad=True)
    for argv in ('p --workspace w --skip_bad', '--workspace w p --skip-bad', '--workspace w --skip_bad --folder p'):
        assert cli.given_of('photos', cli.with_underscores(argv.split())) == want
    assert cli.given_of('forget', '--workspace w a b'.split())['subject'] == ['a', 'b']


def test_the_workspace_is_the_flag_then_the_folder_then_the_variable(tmp_path, monkeypatch):
    from hgdpo_curate import create_workspace
    for name in ('flag', 'here', 'variable'): create_workspace(tmp_path/name, resolution='40x56')
    monkeypatch.setenv('HGDPO_WORKSPACE', str(tmp_path/'variable'))
    monkeypatch.chdir(tmp_path)
    assert cli.find_workspace() == str(tmp_path/'variable')
    (tmp_path/'here'/'images').mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path/'here'/'images')
    assert cli.find_workspace() == '..' and cli.find_workspace('flag') == 'flag'
    for argv in (
        ['demo'],
        ['card', '--package'],
        ['tiny', '--mannequins', '--output', 'o'],
        ['evaluate', '--table', 'easy'],
    ):
        assert cli.means_no_workspace(argv[0], vars(cli.make_parser(argv[0]).parse_args(argv[1:])))


def test_names_that_models_had_in_the_first_version_are_still_understood(tmp_path, capsys, recwarn):
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    import_photos(ws, export_photos(tmp_path/'photos', 4, seed=3), progress=plain)
    at = ['--workspace', str(ws.root)]
    for scorer, detector in (('tiny', 'tiny'), ('tiny,tiny', 'tiny_faults'), ('smallscore', 'drawn_faults')):
        assert cli.main(['score', *at, '--scorer', scorer]) == cli.main(['flag', *at, '--detector', detector]) == 0
        assert ws.table('scores', history=True).scorer.tolist() == ['smallscore']*4        # by whichever name, once
        seen = ws.table('detections', history=True)
        assert {*seen.detector} == {'drawn_faults'} and not seen.duplicated(['image_id', 'kind', 'index']).any()
    assert not [w for w in recwarn if 'tiny' in str(w.message)]
    capsys.readouterr()
    assert cli.main(['pairs', *at, '--scorer', 'tiny']) == 1 and 'hgdpo pool' in capsys.readouterr().err
    assert cli.main(['score', *at, '--scorer', 'huge']) == 2 and 'choose one of smallscore,' in capsys.readouterr().err


def test_every_command_of_the_page_on_rented_machines_has_the_flags_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv('HGDPO_WORKSPACE', str(tmp_path))
    page = (ROOT/'docs'/'rented-gpu.md').read_text()
    blocks = '\n'.join(re.findall(r'```\w*\n(.*?)```', page, re.S))
    lines = [part.split(' #')[0].strip() for part in re.split(r'\n|&&|\|\|', blocks)]
    commands = [m[2] for line in lines if (m := re.match(r'(hgdpo|accelerate launch .*-m hgdpo_curate) (\w.*)', line))]
    assert len(commands) > 25 and {c.split()[0] for c in commands} >= {
        'init', 'photos', 'plan', 'pool', 'recon', 'score', 'flag', 'pack', 'unpack', 'train', 'evaluate', 'card'}
    for command in commands:
        verb, *argv = shlex.split(command)
        verb = verb.replace('-', '_')                                                   # tune-base
        given = cli.given_of(verb, cli.with_underscores(argv))
        assert verb in ('unpack', 'doctor') or given['workspace'], command
