"""Pair selection holds for any pool."""
import pandas as pd
from hypothesis import given, settings, strategies as st

from hgdpo_curate.curate.pairs import easy_pairs, hard_pairs, normal_pairs

score = st.integers(0, 6).map(lambda i: i/4)          # few values, so that ties are common
prompt = st.fixed_dictionaries(
    dict(
        pool=st.lists(score, min_size=0, max_size=5),
        recon=st.dictionaries(st.sampled_from([100, 400, 500, 600, 700]), score),
    )
)


def tables(prompts):
    rows = []
    for p, d in enumerate(prompts):
        rows += [
            dict(
                image_id=f'{p}g{i}',
                prompt_id=f'p{p}',
                domain='generated',
                timestep=None,
                score=s,
            )
            for i, s in enumerate(d['pool'])
        ]
        rows += [
            dict(
                image_id=f'{p}r{t}',
                prompt_id=f'p{p}',
                domain='intermediate',
                timestep=t,
                score=s,
            )
            for t, s in d['recon'].items()
        ]
    df = pd.DataFrame(rows, columns=['image_id', 'prompt_id', 'domain', 'timestep', 'score'])
    return df.drop(columns='score'), df[['image_id', 'score']].assign(scorer='x')


def three(images, scores, **k):
    easy = easy_pairs(images, scores, **k)
    normal = normal_pairs(images, scores, easy, **k)
    return easy, normal, hard_pairs(images, scores, normal, **k)


@settings(max_examples=60, deadline=None)
@given(st.lists(prompt, max_size=4), st.randoms())
def test_the_rules_of_the_paper_hold_in_any_row_order(prompts, random):
    images, scores = tables(prompts)
    easy, normal, hard = three(images, scores)
    for e in easy.itertuples():
        mine = scores[scores.image_id.str.startswith(f'{e.prompt_id[1:]}g')].score
        assert e.winner_score == mine.max() > e.loser_score == mine.min()
    assert (normal.winner_score >= normal.loser_score).all()
    assert set(hard.prompt_id) <= set(normal.prompt_id) <= set(easy.prompt_id)
    assert normal.loser_id.isin(easy.winner_id).all() and hard.loser_id.isin(normal.winner_id).all()
    for df in (easy, normal, hard): assert df.prompt_id.is_unique and (df.winner_id != df.loser_id).all()
    order = random.sample(range(len(images)), len(images))
    for a, b in zip(three(images.iloc[order], scores.iloc[order[::-1]]), (easy, normal, hard)):
        pd.testing.assert_frame_equal(a, b)


@settings(max_examples=40, deadline=None)
@given(st.lists(prompt, min_size=1, max_size=3), st.data())
def test_a_confirmed_fault_never_wins_and_a_rejected_image_is_nowhere(prompts, data):
    images, scores = tables(prompts)
    if not len(images): return
    bad = data.draw(st.sets(st.sampled_from(sorted(images.image_id)), max_size=3))
    gone = data.draw(st.sets(st.sampled_from(sorted(images.image_id)), max_size=3))
    flags = pd.DataFrame(
        [dict(image_id=i, flag='extra_limb', status='confirmed') for i in sorted(bad)],
        columns=['image_id', 'flag', 'status'],
    )
    reviews = pd.DataFrame(
        [dict(subject_id=i, decision='reject') for i in sorted(gone)], columns=['subject_id', 'decision']
    )
    for df in three(images, scores, flags=flags, reviews=reviews):
        assert not df.winner_id.isin(bad | gone).any() and not df.loser_id.isin(gone).any()


def test_a_fault_that_scores_above_every_winner_leaves_the_plain_loser():
    images, scores = tables([dict(pool=[.25, .5, .75, 1.5], recon={})])
    flags = pd.DataFrame([dict(image_id='0g3', flag='extra_limb', status='confirmed')])
    choose = lambda f: easy_pairs(images, scores, f, prefer_flagged_losers=True)[
        ['winner_id', 'loser_id']
    ].values.tolist()
    assert choose(flags) == [['0g2', '0g0']]
    assert choose(pd.concat([flags, flags.assign(image_id='0g1')])) == [['0g2', '0g1']]


# --- the rules by columns against the rules by prompt, see pairs_by_prompt.py

LEVELS = [100, 300, 400, 500, 600, 700, None]
image = st.fixed_dictionaries(
    dict(
        domain=st.sampled_from(['generated'] * 4 + ['intermediate'] * 3 + ['real', 'evaluation']),
        timestep=st.sampled_from(LEVELS),
        score=st.sampled_from([None, float('nan'), 'unscored']) | score | score | score,
        number=st.integers(0, 9999),
        flag=st.sampled_from([None] * 6 + ['extra_limb', 'bad_hand', 'cropped', 'ok']),
        status=st.sampled_from(['proposed', 'confirmed', 'confirmed', 'cleared']),
        decisions=st.lists(st.sampled_from(['approve', 'reject', 'duplicate', 'undecided']), max_size=2),
    )
)
pool = st.lists(st.lists(image, max_size=9), max_size=4)


def as_tables(prompts, wide, random):
    "The tables that a drawn pool amounts to; ids of 16 digits or short ones, rows in any order."
    rows = []
    for p, images in enumerate(prompts):
        for k, d in enumerate(images):
            name = f'{(d["number"]*7919 + p*31 + k) % 2**32:08x}{p:04x}{k:04x}' if wide else f'{d["number"]}-{p}-{k}'
            rows.append(dict(d, image_id=name, prompt_id=f'{p:016x}' if wide else f'p{p}'))
    random.shuffle(rows)
    columns = ['image_id', 'prompt_id', 'domain', 'timestep', 'score', 'flag', 'status', 'decisions']
    df = pd.DataFrame(rows, columns=columns).astype(dict(image_id='str', prompt_id='str', domain='str'))
    scores = df[df.score.map(lambda s: s != 'unscored').astype(bool)][['image_id', 'score']].assign(scorer='x')
    scores['score'] = pd.to_numeric(scores.score, errors='coerce').astype('float64')
    flags = df[df.flag.notna()][['image_id', 'flag', 'status']]
    decided = df[['image_id', 'decisions']].explode('decisions').dropna()
    reviews = decided.rename(columns=dict(image_id='subject_id', decisions='decision'))
    images = df[['image_id', 'prompt_id', 'domain', 'timestep']].assign(timestep=df.timestep.astype('Int64'))
    return images, scores.sample(frac=1, random_state=1), flags, reviews


def same(mine, theirs):
    assert [*mine.columns] == [*theirs.columns]
    pd.testing.assert_frame_equal(mine, theirs, check_dtype=len(mine) > 0)
    assert [*mine.attrs['dropped']] == [*theirs.attrs['dropped']]


@settings(max_examples=60, deadline=None)
@given(pool, st.booleans(), st.randoms(use_true_random=False), st.data())
def test_the_same_pairs_and_reasons_as_prompt_by_prompt(prompts, wide, random, data):
    import pairs_by_prompt as slow
    from hgdpo_curate.curate import pairs as fast
    images, scores, flags, reviews = as_tables(prompts, wide, random)
    use_flags, use_reviews = data.draw(st.booleans()), data.draw(st.booleans())
    flags, reviews = flags if use_flags else None, reviews if use_reviews else None
    choices = dict(real_winner=data.draw(st.booleans()), prefer_flagged_losers=data.draw(st.booleans()))
    drafted = slow.choose_pairs(images, scores, flags, reviews, **choices)
    if use_reviews and len(drafted['easy']):                 # people decide on drafted pairs too
        ids = [fast.pair_ids_of(s, df.prompt_id, df.winner_id, df.loser_id) for s, df in drafted.items()]
        said = [
            dict(subject_id=i, decision=data.draw(st.sampled_from(['swap', 'reject', 'approve'])))
            for i in sum(ids, [])[:4]
        ]
        reviews = pd.concat([reviews, pd.DataFrame(said)], ignore_index=True)
    theirs = slow.choose_pairs(images, scores, flags, reviews, **choices)
    ready = data.draw(st.booleans())                         # images that bring their score
    mine_of = (fast.with_scores(images, scores), None) if ready else (images, scores)
    mine = fast.choose_pairs(*mine_of, flags, reviews, **choices)
    for stage in mine: same(mine[stage], theirs[stage])
    controls = slow.control_pairs(images, scores, **theirs, flags=flags, reviews=reviews)
    for name, df in fast.control_pairs(*mine_of, **mine, flags=flags, reviews=reviews).items(): same(df, controls[name])
