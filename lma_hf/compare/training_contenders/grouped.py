"""`plain` with batches of similar lengths, which is an option of `transformers.Trainer`, and always on in ours."""

from lma_hf.compare.training_contenders import plain


def train(job):
    """Train a `TrainingJob`'s student."""
    plain.train(job, train_sampling_strategy="group_by_length")
