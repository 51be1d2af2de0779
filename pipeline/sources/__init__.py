"""Sources of data sets: the synthetic sample and Kaggle."""
