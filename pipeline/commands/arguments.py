"""Arguments that several commands share, and how they are looked up."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.data.box_classes import LabelRules

# Prefixes of models that MLflow fetches; any other model is a folder.
REGISTERED = ("models:/", "runs:/", "mlflow-artifacts:/")

DatasetFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A data set in the project's layout.")]
ModelName = Annotated[str, typer.Argument(help="models/, a run's model URI, or models:/name@alias.")]
ModelsFolder = Annotated[Path, typer.Option(help="Folder of the model; crossval/models is that of all folds.")]
ReportsFolder = Annotated[Path, typer.Option(help="Folder of its results, such as crossval/reports.")]
StudySeconds = Annotated[float, typer.Option(min=0.1, help="A study that takes longer to read is unusable.")]
BatchSize = Annotated[int, typer.Option(min=1, max=256, help="Images that the network takes at a time.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes; 0 means one per core.")]


def label_rules() -> "LabelRules | None":
    """Return the classes of params.yaml, if there is one; otherwise each name in a label table is a class."""
    from pipeline.assembly.labels import label_rules_of
    from pipeline.params import load_params

    return label_rules_of(load_params()) if Path("params.yaml").exists() else None


def model_folder(model: str) -> Path:
    """Return the folder of a model; MLflow's are downloaded to it."""
    if model.startswith(REGISTERED):
        from pipeline.tracking import download_model

        return download_model(model)
    return Path(model)
