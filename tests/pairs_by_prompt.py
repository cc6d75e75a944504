"""The rules of pairs, one prompt after another: slow and plain. What `curate.pairs` chooses is held against it."""
import pandas as pd

from hgdpo_curate.curate.pairs import HARD_LEVEL, NORMAL_LEVELS, PAIR
from hgdpo_curate.files import pair_id_of
from hgdpo_curate.tables import HARMLESS_FLAGS, last_decisions


def _scored(images, scores):
    "Images that have a score, the best of each prompt last."
    if scores.scorer.nunique() > 1:
        raise ValueError(f'scores of one scorer are wanted, not of {sorted(scores.scorer.unique())}')
    scored = images.merge(scores[['image_id', 'score']].dropna(), on='image_id')
    return scored.sort_values(['prompt_id', 'score', 'image_id'], kind='stable')


def _pair_table(rows, dropped):
    "Rows of `PAIR` as a table; `attrs['dropped']` lists what a rule left out and why."
    out = pd.DataFrame(rows, columns=PAIR).astype(dict(winner_score='float64', loser_score='float64'))
    out = out.sort_values('prompt_id', kind='stable').reset_index(drop=True)
    out.attrs['dropped'] = pd.DataFrame(dropped, columns=['prompt_id', 'image_id', 'reason']).to_dict('records')
    return out


def rejected(reviews=None) -> dict: # rows of `reviews` -> image id -> reason
    """Images that leave every stage, as winner and as loser: a person rejected them or marked them a duplicate.

    The last decision counts.
    """
    if reviews is None or not len(reviews): return {}
    return {
        i: f'{d}ed' if d == 'reject' else d
        for i, d in last_decisions(reviews).decision.items()
        if d in ('reject', 'duplicate')
    }


def excluded_winners(flags=None, reviews=None) -> dict: # rows of `flags` and `reviews` -> image id -> reason
    "Images that must not win: a person confirmed a fault, or the image is rejected."
    excluded = {}
    if flags is not None:
        faults = flags[(flags.status == 'confirmed') & ~flags.flag.isin(HARMLESS_FLAGS)]
        excluded |= {i: f'confirmed {f}' for i, f in zip(faults.image_id, faults.flag)}
    return excluded | rejected(reviews)


def _must_not_win(candidates, excluded, prompts):
    "What `attrs['dropped']` lists of excluded candidates of these prompts."
    return [
        (p, i, f'must not win: {excluded[i]}')
        for p, i in zip(candidates.prompt_id, candidates.image_id)
        if i in excluded and p in prompts
    ]


def easy_pairs(images,        # rows of `images`; those of the domain `generated` take part
               scores,        # rows of `scores` by one scorer
               flags=None,    # rows of `flags`; None: no image is flagged
               reviews=None,  # rows of `reviews`; None: nobody decided
               # the worst-scored image with a confirmed fault loses, where one scores below the winner
               prefer_flagged_losers: bool = False
              ) -> pd.DataFrame: # columns `PAIR`
    """D_E (equation 2): per prompt the best-scored image of the pool against the worst.

    Equal scores are dropped.
    """
    faulty = set(excluded_winners(flags)) if prefer_flagged_losers else set()
    gone, excluded, rows, dropped = rejected(reviews), excluded_winners(flags, reviews), [], []
    for prompt, pool in _scored(images[images.domain == 'generated'], scores).groupby('prompt_id', sort=True):
        dropped += [(prompt, i, gone[i]) for i in pool.image_id if i in gone]
        pool = pool[~pool.image_id.isin(gone)]
        eligible = pool[~pool.image_id.isin(excluded)]
        dropped += _must_not_win(pool, excluded, {prompt})
        if len(pool) < 2 or not len(eligible):
            dropped.append((prompt, '', 'fewer than two usable images'))
            continue
        winner = eligible.iloc[-1]
        worst_faulty = (r for r in pool.itertuples() if r.image_id in faulty and r.score < winner.score)
        loser = next(worst_faulty, pool.iloc[0])
        if winner.score > loser.score:
            rows.append((prompt, winner.image_id, loser.image_id, winner.score, loser.score))
        else: dropped.append((prompt, winner.image_id, 'no image scores above the loser'))
    return _pair_table(rows, dropped)


def normal_pairs(images,       # rows of `images`; the `intermediate` ones at `NORMAL_LEVELS` take part
                 scores,       # rows of `scores` by one scorer
                 easy,         # what `easy_pairs` chose
                 flags=None,   # rows of `flags`; None: no image is flagged
                 reviews=None  # rows of `reviews`; None: nobody decided
                ) -> pd.DataFrame: # columns `PAIR`
    """D_N (equation 3): the best-scored reconstruction at t4..t7 against the easy winner.

    Kept if f(winner) >= f(loser).
    """
    candidates = images[(images.domain == 'intermediate') & images.timestep.isin(NORMAL_LEVELS)]
    excluded, rows = excluded_winners(flags, reviews), []
    dropped = _must_not_win(candidates, excluded, set(easy.prompt_id))
    eligible = _scored(candidates[~candidates.image_id.isin(excluded)], scores)
    best = eligible.drop_duplicates('prompt_id', keep='last').set_index('prompt_id')
    for e in easy.itertuples():
        if e.prompt_id not in best.index:
            dropped.append((e.prompt_id, '', 'no usable reconstruction at 400..700'))
            continue
        winner = best.loc[e.prompt_id]
        if not winner.score >= e.winner_score:
            dropped.append((e.prompt_id, winner.image_id, 'filter: f(winner) < f(loser)'))
        elif winner.image_id != e.winner_id:
            rows.append((e.prompt_id, winner.image_id, e.winner_id, winner.score, e.winner_score))
    return _pair_table(rows, dropped)


def hard_pairs(images,        # rows of `images`; the `intermediate` ones at `HARD_LEVEL` take part, or the photos
               scores,        # rows of `scores` by one scorer; a winner without a score still wins
               normal,        # what `normal_pairs` chose
               flags=None,    # rows of `flags`; None: no image is flagged
               reviews=None,  # rows of `reviews`; None: nobody decided
               real_winner: bool = False  # the photo itself wins
              ) -> pd.DataFrame: # columns `PAIR`
    "D_H (equation 4): the reconstruction at t1, or the photo, against the normal winner."
    near = (images.domain == 'intermediate') & (images.timestep == HARD_LEVEL)
    candidates = images[images.domain == 'real'] if real_winner else images[near]
    excluded, rows = excluded_winners(flags, reviews), []
    dropped = _must_not_win(candidates, excluded, set(normal.prompt_id))
    eligible = candidates[~candidates.image_id.isin(excluded)]
    eligible = eligible.merge(scores[['image_id', 'score']], on='image_id', how='left').sort_values('image_id')
    winners = eligible.drop_duplicates('prompt_id', keep='last').set_index('prompt_id')
    for n in normal.itertuples():
        if n.prompt_id in winners.index:
            winner = winners.loc[n.prompt_id]
            rows.append((n.prompt_id, winner.image_id, n.winner_id, winner.score, n.winner_score))
        else:
            dropped.append((n.prompt_id, '', 'no usable photo' if real_winner else 'no usable reconstruction at 100'))
    return _pair_table(rows, dropped)


def control_pairs(images,       # rows of `images`
                  scores,       # rows of `scores` by one scorer
                  easy,         # what `easy_pairs` chose
                  normal,       # what `normal_pairs` chose
                  hard,         # what `hard_pairs` chose
                  flags=None,   # rows of `flags`; None: no image is flagged
                  reviews=None  # rows of `reviews`; None: nobody decided
                 ) -> dict:     # name of `PAIR_CONTROLS` -> pairs
    """Pairs that the paper's controls and other methods train on (docs/paper.md sections 2 and 6).

    `naive`: the photo against the pool's first image (by id: any seed). `two`: the best against the worst of two
    images per prompt. `skip`: the hard winner against the easy one. `real`: the photo against the normal winner.
    `ranked`: the pool in order of score, the first against the last, the second against the last but one, and so on.
    """
    excluded, gone = excluded_winners(flags, reviews), rejected(reviews)
    score = scores.set_index('image_id').score
    pool = images[images.domain == 'generated'].sort_values('image_id')
    pool = pool[pool.prompt_id.isin(easy.prompt_id)]
    usable = pool[~pool.image_id.isin(gone)]
    photo = _first_image(images[(images.domain == 'real') & ~images.image_id.isin({*excluded, *gone})])
    first, best = _first_image(usable), easy.set_index('prompt_id').winner_id
    def scored(pairs):
        return _pair_table([(p, w, l, score.get(w, float('nan')), score.get(l, float('nan'))) for p, w, l in pairs], [])
    return dict(
        naive=scored((p, photo[p], first[p]) for p in easy.prompt_id if p in photo and p in first),
        two=easy_pairs(pool.groupby('prompt_id').head(2), scores, flags, reviews),
        skip=scored((p, w, best[p]) for p, w in zip(hard.prompt_id, hard.winner_id)),
        real=scored((p, photo[p], w) for p, w in zip(normal.prompt_id, normal.winner_id) if p in photo),
        ranked=scored(_ranked(_scored(usable, scores), excluded)),
    )


def _first_image(images): # -> prompt id -> image id
    return images.drop_duplicates('prompt_id').set_index('prompt_id').image_id


def _ranked(scored, excluded): # yields (prompt id, winner id, loser id)
    for prompt, pool in scored.groupby('prompt_id', sort=True):                 # the worst first
        best_first = [r for r in pool[::-1].itertuples() if r.image_id not in excluded]
        for w, l in zip(best_first, best_first[1:]): yield prompt, w.image_id, l.image_id


def review_pairs(df,            # pairs of one stage
                 stage: str,    # one of `PAIR_STAGES`
                 reviews=None,  # rows of `reviews`; None: nobody decided
                 excluded=None  # image id -> reason, as `excluded_winners`
                ) -> pd.DataFrame: # the pairs that stand
    """Apply a person's decisions on drafted pairs.

    `reject` drops a pair, `swap` turns it round, unless an image would win that must not.
    """
    if reviews is None or not len(reviews) or df.empty: return df
    decision = _pair_decisions(df, stage, reviews)
    out, swap, attrs = df.copy(), decision == 'swap', df.attrs
    for a, b in (('winner_id', 'loser_id'), ('winner_score', 'loser_score')):
        out.loc[swap, [a, b]] = df.loc[swap, [b, a]].to_numpy()
    gone, faulty = decision.isin(['reject', 'duplicate']), swap & out.winner_id.isin(excluded or {})
    dropped = [dict(prompt_id=p, image_id='', reason='pair rejected') for p in df.prompt_id[gone]] + [
        dict(prompt_id=r.prompt_id, image_id=r.winner_id, reason=f'swapped, but {excluded[r.winner_id]}')
        for r in out[faulty & ~gone].itertuples()
    ]
    out = out[~gone & ~faulty].reset_index(drop=True)
    out.attrs = dict(attrs, dropped=attrs.get('dropped', []) + dropped)
    return out


def _pair_decisions(df, stage, reviews): # -> Series of decisions, one per pair
    "The decision on each pair; on one that was swapped, a later rejection of the swapped pair."
    last = last_decisions(reviews).decision
    def decisions(winner, loser):
        ids = [pair_id_of(stage, *row) for row in zip(df.prompt_id, df[winner], df[loser])]
        return pd.Series(ids, index=df.index).map(last)
    drawn, turned = decisions('winner_id', 'loser_id'), decisions('loser_id', 'winner_id')
    return drawn.mask((drawn == 'swap') & turned.isin(['reject', 'duplicate']), turned)


def choose_pairs(images,        # rows of `images`
                scores,        # rows of `scores` by one scorer
                flags=None,    # rows of `flags`; None: no image is flagged
                reviews=None,  # rows of `reviews`; None: nobody decided
                real_winner: bool = False,           # the photo itself wins the hard stage
                prefer_flagged_losers: bool = False  # see `easy_pairs`
               ) -> dict:      # stage -> pairs
    "The pairs of the three stages, reviewed; each stage follows from the one before."
    excluded = excluded_winners(flags, reviews)
    def reviewed(df, stage): return review_pairs(df, stage, reviews, excluded)
    easy = reviewed(
        easy_pairs(
            images,
            scores,
            flags,
            reviews,
            prefer_flagged_losers,
        ),
        'easy',
    )
    normal = reviewed(
        normal_pairs(
            images,
            scores,
            easy,
            flags,
            reviews,
        ),
        'normal',
    )
    hard = reviewed(
        hard_pairs(
            images,
            scores,
            normal,
            flags,
            reviews,
            real_winner,
        ),
        'hard',
    )
    return dict(easy=easy, normal=normal, hard=hard)
