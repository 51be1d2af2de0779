"""Versions of data sets, in the form that MLflow shows."""

import warnings
from dataclasses import dataclass

import mlflow
from mlflow.data.meta_dataset import MetaDataset


@dataclass(frozen=True)
class DataVersion:
    """A data set: its name, DVC's hash of it, and its location."""

    name: str
    digest: str
    source: str

    def split(self, name: str) -> MetaDataset:
        """Return a part of it, with a name of its own: a run shows a data set only once, whatever its uses."""
        with warnings.catch_warnings():
            # MLflow registers its class for local folders twice and warns that it must choose.
            warnings.filterwarnings("ignore", "The specified dataset source can be interpreted")
            source = mlflow.data.dataset_source_registry.resolve_dataset_source(self.source)
        # MLflow takes digests of at most 36 characters.
        return MetaDataset(source, name=f"{self.name} {name}", digest=self.digest[:36] or None)  # type: ignore[abstract]
