"""Trainings of a few steps that are stopped and go on: what test_resume.py and test_buckets.py share."""

KW = dict(
    preset='mannequin',
    train_batch_size=2,
    max_train_steps=6,
    checkpointing_steps=2,
    report_to='none',
)


def adapters(run) -> dict: # the folder of a run -> stage, part and name of every weight of its LoRAs -> tensor
    from hgdpo_curate.adapters import read_lora
    stages = [s.name for s in run.iterdir() if (s/'pytorch_lora_weights.safetensors').exists()]
    return {f'{s}.{p}.{k}': v for s in stages for p, d in read_lora(run/s).items() for k, v in d.items()}


def same(a, b) -> bool: # of `adapters`
    import torch
    return bool(a) and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(steps):
    "A progress that interrupts a training after so many steps of all its stages."
    count = 0

    def stopping(total, label):
        def update(n):
            nonlocal count
            count += n if label.startswith('training') else 0
            if count >= steps: raise KeyboardInterrupt
        return update
    return stopping
