"""Paths of the stages' outputs: those that dvc.yaml names, and the names of files in them."""

from pathlib import Path

PREPARED = Path("data/prepared")
SPLITS_FILE = Path("data/splits.csv")
MODELS = Path("models")
CHECKPOINTS = Path("checkpoints")
REPORTS = Path("reports")
CROSSVAL = Path("crossval")

QUARANTINE = REPORTS / "quarantine.csv"
DATA_PAGE = REPORTS / "data.html"

# In the folder of models.
RUN_FILE = "mlflow_run.json"
OUT_OF_FOLD = "out_of_fold.csv"

# In the folder of reports.
DETECTIONS = "detections.csv"
REFERENCE = "reference.csv"
REGISTERED = "registered.json"
METRICS = "metrics.json"
MODEL_CARD, DATA_CARD = "model_card.md", "data_card.md"
# What `dvc metrics` shows: few numbers, in one line of a terminal.
HEADLINE = "headline.json"
