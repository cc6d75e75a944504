"""Jobs for Ray workers, mostly without torch; test_engines.py calls them on other processes."""
import time

import numpy as np

from hgdpo_curate import open_workspace, register_scorer, score_images
from hgdpo_curate.images.jobs import image_job, run_jobs, seed_of
from hgdpo_curate.toy.drawings import draw_person

JOBS, BATCH = 48, 4


def draw_pool(workspace, pause=.4, device='cpu'):
    "Make the images, in batches that take `pause` seconds."
    ws = open_workspace(workspace)
    jobs = [image_job('p', 'a person', seed_of('p', k), 'drawn', ws.size, 'none', 1, 1.) for k in range(JOBS)]
    def make(part):
        time.sleep(pause)
        return [draw_person([7, j['seed']]).pil() for j in part]
    return run_jobs(ws, None, jobs, 'generated', BATCH, make=make, progress=lambda total, label: lambda n: None)


class Faulty: # a scorer from outside
    name, version = 'faulty', '1'
    def score(self, images, prompts): raise ValueError('no such layer')


def pool_with_a_faulty_scorer(workspace, **options):
    "As `hgdpo pool --score faulty`."
    from hgdpo_curate.judge.scores import generate_and_score
    register_scorer('faulty', Faulty, measures='nothing', licence='Apache-2.0')
    return generate_and_score(workspace, **options)


class Brightness: # another one
    name, version = 'brightness', '1'
    def score(self, images, prompts): return np.array([np.asarray(i, float).mean() for i in images])


def score_by_brightness(workspace, device='cpu'):
    "As `hgdpo score`."
    return score_images(workspace, Brightness())
