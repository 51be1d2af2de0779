"""The limits of a served model's requests. This module imports no PyTorch."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError


class ServingLimits(BaseModel):
    """The limits of a request; stored with the registered model as its configuration.

    Attributes:
        max_body_mib: size of a request's body.
        max_rows: studies in one request.
        max_requests: requests that are worked on at once; each has a reading process.
        max_waiting: requests that wait for their turn; further ones are refused.
        study_seconds: a study that takes longer to read is refused.
        request_seconds: after this time no further row of a request is begun; its body must arrive within as long.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_mib: Annotated[float, Field(gt=0, le=1024)] = 64
    max_rows: Annotated[int, Field(ge=1, le=1024)] = 64
    max_requests: Annotated[int, Field(ge=1, le=64)] = 2
    max_waiting: Annotated[int, Field(ge=0, le=1024)] = 16
    study_seconds: Annotated[float, Field(gt=0, le=3600)] = 10
    request_seconds: Annotated[float, Field(gt=0, le=3600)] = 60

    @property
    def max_body_bytes(self) -> int:
        """Return ``max_body_mib`` in bytes."""
        return int(self.max_body_mib * 2**20)


def read_limits(config: Mapping[str, object], source: str) -> ServingLimits:
    """Return the limits that a model's configuration sets.

    Raises:
        UserError: the configuration has an unknown key, or a value out of its range.
    """
    try:
        return ServingLimits.model_validate(dict(config))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{source}: {key} = {problem['input']!r}: {problem['msg']}") from None
