"""What tests of the suite of attacks ask for."""

from metastable.evaluation.groups import RobustConfig

MEMBERS = ("transfer", "annealed-ce", "joint")


def config(**changes: object) -> RobustConfig:
    fields: dict[str, object] = {"steps": 2, "samples": 2, "check": 4, "batch": 2}
    return RobustConfig(**(fields | changes))  # type: ignore[arg-type]
