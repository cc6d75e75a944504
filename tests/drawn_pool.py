"""A job that a Ray worker can do without torch: drawn people, slowly; test_engines.py calls it on other processes."""
import time

from hgdpo_curate import open_workspace
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
