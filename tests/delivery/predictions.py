"""Predictions for tests."""

import numpy as np

from pipeline.delivery.predictor import Prediction


def prediction(boxes, scores, *class_scores, labels=None, classes=("lung opacity",)):
    """Make a prediction, of one class unless ``labels`` say otherwise."""
    own = np.zeros(len(scores), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Prediction(np.asarray(boxes, np.float64), np.asarray(scores), own, tuple(classes), np.array(class_scores))
