import numpy as np
from hypothesis import strategies as st

from pipeline.metrics.results import image_result

# Coordinates on a coarse grid, so that boxes often coincide, touch or overlap.
side = st.integers(2, 8).map(lambda value: value * 10)
corner = st.integers(0, 6).map(lambda value: value * 10)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
score = st.integers(1, 9).map(lambda value: value / 10)


@st.composite
def results(draw, least=1, most=6):
    """Draw images with up to 3 boxes and up to 5 detections of distinct scores."""
    images = []
    for _ in range(draw(st.integers(least, most))):
        truth = draw(st.lists(box, max_size=3, unique=True))
        found = draw(st.lists(box, max_size=5))
        scores = draw(st.lists(score, min_size=len(found), max_size=len(found), unique=True))
        images.append(image_result(np.array(found), np.array(scores), np.array(truth)))
    return images


def random_results(count, seed=0, distinct=True):
    """Make many images whose detections are shifted true boxes and noise."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        truth = rng.uniform(0, 60, (rng.integers(0, 3), 2))
        truth = np.concatenate([truth, truth + rng.uniform(20, 60, truth.shape)], 1)
        near = truth + rng.normal(0, 4, truth.shape)
        far = rng.uniform(0, 60, (rng.integers(0, 3), 2))
        far = np.concatenate([far, far + rng.uniform(20, 60, far.shape)], 1)
        scores = np.concatenate([rng.uniform(0.2, 1, len(near)), rng.uniform(0, 0.7, len(far))])
        images.append(image_result(np.concatenate([near, far]), scores if distinct else scores.round(1), truth))
    return images
