"""Types with bounds that several settings share. A section of the params is declared beside its user."""

from typing import Annotated

from pydantic import ConfigDict, Field

# allow_inf_nan: YAML and JSON can express numbers that no setting here intends (.nan, Infinity).
CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Workers = Annotated[int, Field(ge=0, le=256)]
