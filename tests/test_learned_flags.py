"""A flag is learned from what people said, says how good it is, and is learned again as they go on and as people go."""
import json

import numpy as np
import pytest
from conftest import plain, quiet

from hgdpo_curate import create_workspace, flag_images, forget, import_photos, UsageError, UserError
from hgdpo_curate.cli import main
from hgdpo_curate.judge.flag_features import FeatureCache, features_for_flags, flag_extractor, KeptFeatures
from hgdpo_curate.judge.learned_flags import (
    decisions_made, EXAMPLES_NEEDED, judged_flags, kept_models, models_folder, train_flags,
)
from hgdpo_curate.judge.learned_proposals import learn_again, look_places, next_looks
from hgdpo_curate.tables import TAKEN_BACK

FAULTY, SOUND = 40, 60


def swollen(i):
    "A drawing with a foot that is too large, of which neither rules nor networks know."
    from PIL import Image
    from hgdpo_curate.toy.bodies import KEYPOINTS
    from hgdpo_curate.toy.drawings import draw_person
    d, (y, x) = draw_person([0, i]), np.mgrid[:56, :40]
    at = d.keypoints[KEYPOINTS.index('left_ankle')]
    foot = np.hypot(x - at[0], y - at[1])[..., None] < 4
    return Image.fromarray(np.where(foot, (40, 30, 25), d.image).astype(np.uint8))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A workspace of a hundred drawings, forty with a swollen foot; ids of these, ids of the others."
    from hgdpo_curate.toy.drawings import export_photos
    folder = tmp_path_factory.mktemp('learned')
    photos = export_photos(folder/'photos', FAULTY + SOUND)
    for i in range(FAULTY): swollen(i).save(photos/f'{i:05d}.png')
    ws = create_workspace(folder/'ws', resolution='40x56')
    import_photos(ws, photos, progress=plain)
    ids = ws.table('photo_facts').sort_values('original_path').image_id.tolist()
    features_for_flags(ws, ws.table('images'), flag_extractor(ws), quiet)             # every copy of it has them
    return ws, ids[:FAULTY], ids[FAULTY:]


@pytest.fixture
def ws(world, copy_of): return copy_of(world[0])


def say(ws, ids, flag, status, who='anna'):
    "One decision after another, as in the App."
    for i in ids:
        row = dict(flag=flag, status=status, source='human', part='', side='')
        ws.append('flags', [dict(row, image_id=i, reviewer=who)])


def say_at_once(ws, ids, flag, status):
    row = dict(flag=flag, status=status, source='human', part='', side='', reviewer='anna')
    ws.append('flags', [dict(row, image_id=i) for i in ids])


@pytest.fixture
def decided(ws, world):
    "Twenty-five of each were decided on."
    say_at_once(ws, world[1][:25], 'bad_foot', 'confirmed')
    say_at_once(ws, world[2][:25], 'bad_foot', 'cleared')
    return ws


# --- learned, kept, proposed

def test_a_learned_flag_is_proposed_with_probability_reason_and_how_good_it_is(decided, world):
    _, faulty, sound = world
    table = flag_images(decided, 'learned', progress=quiet)
    assert table.flag.tolist() == ['bad_foot'] and (table.confirmed[0], table.cleared[0]) == (25, 25)
    proposed = decided.table('flags').query("source == 'model' and status == 'proposed'")
    assert table.images[0] == len(proposed) > 5 and not set(proposed.image_id) & {*faulty[:25], *sound[:25]}
    assert proposed.image_id.isin(faulty).mean() > .6 and proposed.confidence.between(.5, 1).all()
    for reason in proposed.reason: assert {*reason.split('nearest: ')[1].split(', ')} <= {*faulty[:25]}
    figures = kept_models(decided)['bad_foot'].figures
    for share, low, high in figures.values(): assert 0 < low < share < high <= 1
    assert '{:.2f} ({:.2f} to {:.2f})'.format(*figures['recall']) == table.recall[0]


def test_a_model_is_data_with_its_version_and_its_training_ids(decided, world):
    train_flags(decided, progress=quiet)
    files = sorted(p.name for p in models_folder(decided).iterdir())
    assert files == ['bad_foot.json', 'bad_foot.safetensors']
    about = json.loads((models_folder(decided)/'bad_foot.json').read_text())
    assert sorted(about['confirmed']) == sorted(world[1][:25]) and sorted(about['cleared']) == sorted(world[2][:25])
    assert about['extractor'] == 'evaluator_layers' and about['extractor_version'] and about['written_at']
    again = train_flags(decided, progress=quiet).models['bad_foot']
    assert again.version == about['version'] == kept_models(decided)['bad_foot'].version
    say(decided, world[1][25:26], 'bad_foot', 'confirmed')
    assert train_flags(decided, progress=quiet).models['bad_foot'].version != about['version']


def test_a_second_run_writes_nothing_new_and_a_cleared_proposal_does_not_come_back(decided):
    flag_images(decided, 'learned', progress=quiet)
    rows = len(decided.table('flags', history=True))
    flag_images(decided, 'learned', progress=quiet)
    assert len(decided.table('flags', history=True)) == rows
    from hgdpo_curate.judge.anatomy import open_flags
    first = open_flags(decided).query("source == 'model'").image_id.iloc[0]
    say(decided, [first], 'bad_foot', 'cleared')
    flag_images(decided, 'learned', progress=quiet)
    assert first not in set(open_flags(decided).image_id)


def test_what_teaches_is_what_stands(ws, world):
    _, faulty, sound = world
    say(ws, faulty[:3], 'bad_foot', 'confirmed')
    say(ws, faulty[:1], 'ok', 'confirmed')                      # cancels the fault
    say(ws, faulty[1:2], 'bad_foot', 'cleared', 'ben')          # the last word counts
    say(ws, faulty[2:3], 'bad_foot', TAKEN_BACK)
    say(ws, sound[:1], 'unsure', 'confirmed')                   # teaches nothing
    said = judged_flags(ws).query("flag == 'bad_foot'").set_index('image_id').wrong
    assert said.to_dict() == {faulty[0]: False, faulty[1]: False} and decisions_made(ws) == 7


def test_photos_without_consent_teach_nothing(decided, world):
    photo = world[1][0]
    facts = decided.table('photo_facts').query('image_id == @photo').drop(columns='written_at')
    decided.append('photo_facts', facts.assign(consent='withdrawn'))
    model = train_flags(decided, progress=quiet).models['bad_foot']
    assert photo not in model.confirmed and len(model.confirmed) == 24


# --- bad input

def test_too_few_examples_are_refused_with_a_sentence(ws, world, capsys):
    with pytest.raises(UserError, match='Nobody confirmed or cleared'): flag_images(ws, 'learned', progress=quiet)
    say_at_once(ws, world[1][:2], 'bad_foot', 'confirmed')
    say_at_once(ws, world[2][:40], 'ok', 'confirmed')
    with pytest.raises(UserError, match=f'confirmed on 2 and cleared on 40 .* takes {EXAMPLES_NEEDED} of each'):
        flag_images(ws, 'learned', progress=quiet)
    with pytest.raises(UserError, match='Nobody confirmed bad_hand'): train_flags(ws, flag='bad_hand', progress=quiet)
    with pytest.raises(UsageError, match='not a flag'): train_flags(ws, flag='nonsense', progress=quiet)
    assert main(['flag', '--detector', 'learned', '--workspace', str(ws.root)]) == 1
    assert 'confirmed on 2' in capsys.readouterr().err and not models_folder(ws).exists()


def test_a_flag_that_lost_its_examples_loses_its_model_and_its_proposals(decided, world):
    flag_images(decided, 'learned', progress=quiet)
    say_at_once(decided, world[1][:10], 'bad_foot', 'cleared')
    say_at_once(decided, world[1][:30], 'bad_hand', 'confirmed')
    say_at_once(decided, world[2][:30], 'bad_hand', 'cleared')
    table = flag_images(decided, 'learned', progress=quiet)
    assert table.flag.tolist() == ['bad_hand'] and list(kept_models(decided)) == ['bad_hand']
    rows = decided.table('flags').query("source == 'model' and flag == 'bad_foot'")
    assert len(rows) and (rows.status == 'cleared').all()
    say_at_once(decided, world[1][:20], 'bad_hand', 'cleared')
    with pytest.raises(UserError, match='No flag can be learned yet'): flag_images(decided, 'learned', progress=quiet)
    assert (decided.table('flags').query("source == 'model'").status == 'cleared').all()
    assert kept_models(decided) == {} and not len(look_places(decided))


def test_features_of_another_extractor_are_refused(decided):
    model = train_flags(decided, progress=quiet).models['bad_foot']
    images = decided.table('images')[:3]
    other = features_for_flags(decided, images, flag_extractor(decided, 'evaluator'), quiet)
    with pytest.raises(UserError, match='learned from features of evaluator_layers .* these are of evaluator '):
        model.probability(other)
    newer = KeptFeatures(model.extractor, 'of other weights')
    assert not features_for_flags(decided, images, newer, quiet).images
    with pytest.raises(UsageError, match='no extractor'):
        flag_images(decided, 'learned', extractor='nonsense', progress=quiet)
    with pytest.raises(UsageError, match='--extractor is for'): flag_images(decided, 'drawn_faults', extractor='clip')
    with pytest.raises(UsageError, match='no figures'): flag_images(decided, 'learned', domains=('evaluation',))


def test_a_broken_model_is_named_and_trained_again(decided):
    train_flags(decided, progress=quiet)
    file = models_folder(decided)/'bad_foot.json'
    about = json.loads(file.read_text())
    for broken in ('{', json.dumps(about | dict(confirmed=[])), json.dumps(about | dict(columns=['a']))):
        file.write_text(broken)
        with pytest.raises(UserError, match='cannot be read .* train it again'): kept_models(decided)
    flag_images(decided, 'learned', progress=quiet)
    assert kept_models(decided)['bad_foot'].version == about['version']


# --- stopped, again

class Slow:
    "Means of blocks of pixels; stops once, as Ctrl-C does."
    name, version = 'slow', '1'
    def __init__(self, stop=None): self.stop, self.described = stop, 0
    def extract(self, images):
        if self.stop is not None and self.described >= self.stop: raise KeyboardInterrupt
        self.described += len(images)
        return np.stack([np.asarray(i.resize((5, 7)), np.float32).ravel() for i in images])


def test_a_run_that_was_stopped_goes_on_where_it_was(decided):
    with pytest.raises(KeyboardInterrupt): flag_images(decided, 'learned', extractor=Slow(stop=20), progress=quiet)
    kept = FeatureCache(decided, Slow()).read(decided.table('images').image_id, vectors=False)
    assert 20 <= len(kept) < 50
    rest = Slow()
    flag_images(decided, 'learned', extractor=rest, progress=quiet)
    assert rest.described == FAULTY + SOUND - len(kept)


def test_flags_are_learned_again_after_fifty_decisions_and_not_before(decided, world):
    _, faulty, sound = world
    assert not learn_again(decided)                                        # nobody asked for learned flags yet
    flag_images(decided, 'learned', progress=quiet)
    before = kept_models(decided)['bad_foot']
    say(decided, [*faulty[25:40], *sound[25:59]], 'bad_foot', 'confirmed')                 # 49
    assert not learn_again(decided) and kept_models(decided)['bad_foot'].version == before.version
    say(decided, sound[59:], 'bad_foot', 'cleared')
    assert learn_again(decided) and not learn_again(decided)
    after = kept_models(decided)['bad_foot']
    assert len(after.confirmed) == 25 + 49 and after.version != before.version


# --- where a look pays

def test_the_most_uncertain_go_first_then_the_most_probable(decided, world):
    assert set(next_looks(decided).image_id) == {*world[1][25:], *world[2][25:]}       # before anything was learned
    flag_images(decided, 'learned', progress=quiet)
    looks = next_looks(decided)
    assert len(looks) == 50 and not looks.image_id.isin([*world[1][:25], *world[2][:25]]).any()
    doubtful = looks.probability.between(.2, .8)
    n = int(doubtful.sum())
    assert doubtful[:n].all() and looks.probability[:n].sub(.5).abs().is_monotonic_increasing
    assert looks.probability[n:].is_monotonic_decreasing and len(next_looks(decided, most=3)) == 3
    from hgdpo_curate import score_images
    score_images(decided, progress=quiet)
    assert next_looks(decided, 'score').score.is_monotonic_increasing
    with pytest.raises(UsageError, match='choose uncertain or score'): next_looks(decided, 'best')


# --- without a person

def traces(ws, needle):
    "Files of a workspace that hold an id, read apart from the package's own search."
    import pyarrow.parquet as pq
    out = []
    for f in ws.root.rglob('*'):
        if not f.is_file(): continue
        texts = str(pq.read_table(f, partitioning=None).to_pydict()) if f.suffix == '.parquet' else ''
        if needle.encode() in f.read_bytes() or needle in texts: out.append(f.name)
    return out


def test_a_removed_photo_is_taken_out_of_features_and_training(decided, world):
    flag_images(decided, 'learned', progress=quiet)
    photo, before = world[1][0], kept_models(decided)['bad_foot']
    assert photo in before.confirmed and len(traces(decided, photo)) > 4
    plan = forget(decided, photo, dry_run=True, app=False, progress=quiet)
    assert 'bad_foot was trained on it, and would be' in str(plan)
    assert kept_models(decided)['bad_foot'].version == before.version
    removal = forget(decided, photo, app=False, progress=quiet)
    assert 'bad_foot was trained on it, and is trained again without it' in str(removal)
    assert not removal.proof.found and traces(decided, photo) == []
    after = kept_models(decided)['bad_foot']
    assert after.confirmed == sorted(set(before.confirmed) - {photo}) and photo not in look_places(decided).index


def test_where_too_few_are_left_the_flag_is_deleted(ws, world):
    say_at_once(ws, world[1][:EXAMPLES_NEEDED], 'bad_foot', 'confirmed')
    say_at_once(ws, world[2][:EXAMPLES_NEEDED], 'bad_foot', 'cleared')
    flag_images(ws, 'learned', progress=quiet)
    removal = forget(ws, world[1][0], app=False, progress=quiet)
    assert 'bad_foot was trained on it and is deleted' in str(removal) and kept_models(ws) == {}
    assert not len(look_places(ws)) and traces(ws, world[1][0]) == []
    proposed = ws.table('flags').query("source == 'model' and status == 'proposed'")
    assert not len(proposed)


def test_a_removed_photo_that_taught_nothing_leaves_the_model_as_it_is(decided, world):
    flag_images(decided, 'learned', progress=quiet)
    before = kept_models(decided)['bad_foot'].version
    removal = forget(decided, world[2][-1], app=False, progress=quiet)
    assert kept_models(decided)['bad_foot'].version == before and 'learned flag' not in str(removal)


# --- in the App

@pytest.mark.usefixtures('mongo')
def test_the_app_sorts_what_is_to_be_reviewed_and_learns_as_people_go_on(decided, world):
    from hgdpo_curate.toy.drawings import draw_person
    from hgdpo_curate.curate.dataset import build_dataset, sort_reviews, update_dataset
    from hgdpo_curate.curate.app import learn_from_review
    from hgdpo_curate.curate.operators import decide_samples, flag_samples, next_to_review
    from hgdpo_curate.judge.learned_proposals import review_order
    ds = build_dataset(decided)
    assert review_order(ds) == 'imported'
    with pytest.raises(UserError, match='No flag is learned yet'): sort_reviews(ds, 'uncertain')
    flag_images(decided, 'learned', progress=quiet)
    ds = build_dataset(decided)
    looks = next_looks(decided)
    view = ds.load_saved_view('flags: to review')
    assert view.values('image_id') == looks.image_id.tolist() and len(ds.load_saved_view('real: to review')) == 100
    assert any('nearest: ' in r for rs in ds.values('reasons') for r in rs or [])
    first = next_to_review(ds)
    places = look_places(decided).place
    assert ds[first].image_id == places.idxmin()
    assert ds[next_to_review(ds, first)].image_id == places.nsmallest(2).index[1]
    # a photo that came after the training is looked at last, by Next as in the views
    late = dict(prompt_id='0'*16, prompt='a person', real_image_id='0'*16, fold='train')
    decided.append('prompts', [late])
    decided.append('images', [decided.save_image(draw_person([9, 9]).pil(), 'real', '0'*16, prompt_id='0'*16)])
    build_dataset(decided)
    for name in ('flags: to review', 'real: to review'):
        assert ds.load_saved_view(name).values('image_id')[-1] == '0'*16
    assert view.values('image_id') == next_looks(decided).image_id.tolist()
    assert next_to_review(ds) == first
    last = ds.load_saved_view('real: to review').values('id')
    assert next_to_review(ds, last[-2]) == last[-1] and next_to_review(ds, last[-1]) == first
    sort_reviews(ds, 'score')
    scores = ds.load_saved_view('flags: to review').values('score')
    assert scores == sorted(scores, key=lambda s: (s is None, s))
    decide_samples(ds, [last[-1]], 'approve')
    sort_reviews(ds, 'imported')
    # the choice is kept
    assert next_to_review(build_dataset(decided)) == min(set(ds.values('id')) - {last[-1]})
    update_dataset(ds, decided, scorer='another')
    for i in view.values('id'):
        flag_samples(ds, [i], 'bad_foot')
        said = learn_from_review(ds, decided)
    assert said == '; flags learned again' and len(kept_models(decided)['bad_foot'].confirmed) == 75
    assert not len(ds.load_saved_view('flags: to review')) and ds.info['choices']['scorer'] == 'another'
    ds.delete()
