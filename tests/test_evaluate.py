"""Evaluation says what it measured, and says *not measured* of the rest."""
from conftest import Chance, quiet


def test_photographs_without_an_evaluator_of_their_own_get_no_anatomy_rate(finished, copy_of):
    from hgdpo_curate import evaluate_runs, train_curriculum
    ws = copy_of(finished)
    ws.append('photo_facts', ws.table('photo_facts').drop(columns='at').assign(source='a camera'))
    run = train_curriculum(ws, preset='mannequin', run='r', progress=quiet, max_train_steps=1, train_batch_size=2)
    table = evaluate_runs(ws, 'r', ('easy', 'base'), per_prompt=2, scorer=Chance(), progress=quiet).set_index(['arm', 'metric']).value
    for metric in ('anatomy_failures', 'prompt_accuracy', 'frechet', 'detail'): assert table['base', metric] != table['base', metric]
    for metric in ('score', 'sharpness', 'hue_distance'): assert table['easy', metric] == table['easy', metric]
    assert table['base', 'hue_distance'] == 0
    text = (run/'evaluation'/'table.md').read_text()
    assert 'not measured' in text and text.index('| base') < text.index('| easy')              # base first, whatever the order asked for
    assert 'too few for a verdict' in text and 'shown' not in text and 'reversed' not in text  # one prompt shows nothing
