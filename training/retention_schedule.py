"""What is kept for how long: the typed schedule that `training.retention` carries out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from consentier.consent.toml_files import read_toml
from consentier.errors import ConfigError, suggestion

__all__ = [
    "AuditRule",
    "BundlesRule",
    "FilesRule",
    "KeysRule",
    "OutcomesRule",
    "ProfilesRule",
    "RetentionSchedule",
    "Rule",
    "TableRule",
    "TrackingRule",
    "load_schedule",
]

_Days = Annotated[float, Field(gt=0, le=36_500, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def kind(cls) -> str:
        """The value of ``what`` by which a file names the rule."""
        field = cls.model_fields.get("what")
        return "" if field is None else str(get_args(field.annotation)[0])


class FilesRule(_Section):
    """Files (batch output, caches, backups, exports) that were last written longer ago are deleted.

    Attributes
    ----------
    path
        A directory. Those below it are left alone.
    pattern
        Which files in it, as a glob pattern such as ``*.parquet``.
    days
        For how long they are kept.
    """

    what: Literal["files"]
    path: Path
    pattern: str
    days: _Days

    @field_validator("pattern")
    @classmethod
    def _of_names(cls, value: str) -> str:
        if not value or "/" in value:
            raise ValueError(
                f"{value!r} is no pattern of names: write one such as *.parquet, without a slash; files "
                "below the directory are left alone, and need a rule of their own"
            )
        return value


class TableRule(_Section):
    """Rows of a table (a Parquet file) whose time lies longer back are deleted.

    Attributes
    ----------
    path, time_column
        The file, and the column of times to go by.
    days
        For how long rows are kept.
    """

    what: Literal["table"]
    path: Path
    time_column: str = "ts"
    days: _Days


class ProfilesRule(_Section):
    """Events of a profile store that lie longer back are deleted.

    Attributes
    ----------
    path
        The file of a store in SQLite.
    url
        In its place, the URL of a store in Redis or PostgreSQL.
    days
        For how long events are kept.
    """

    what: Literal["profiles"]
    path: Path | None = None
    url: str | None = Field(default=None, repr=False)  # it may hold a password
    days: _Days

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("say where the store is: either path or url")
        return self


class AuditRule(_Section):
    """Audit lines past the retention period that they name are deleted.

    Attributes
    ----------
    path
        The directory of the audit log.
    """

    what: Literal["audit"]
    path: Path


class OutcomesRule(_Section):
    """Outcomes of experiments past the retention period that they name are deleted.

    Attributes
    ----------
    path
        The directory of the outcome log.
    """

    what: Literal["outcomes"]
    path: Path


class BundlesRule(_Section):
    """Bundles past their withdrawal deadline are deleted, and what was kept of their fitting.

    Attributes
    ----------
    path
        The directory of bundles.
    restricted
        The restricted directory that belongs to it; by default the one beside it.
    """

    what: Literal["bundles"]
    path: Path
    restricted: Path | None = None


class TrackingRule(_Section):
    """MLflow runs, trials included, that ended longer ago are deleted for good, with their artifacts.

    Attributes
    ----------
    uri, experiment
        The tracking store, and the experiment in it.
    days
        For how long runs are kept.
    bundles
        A directory of bundles: runs that logged one that is past its withdrawal deadline go at once.
    """

    what: Literal["mlflow"]
    uri: str = Field(repr=False)  # it may hold a password
    experiment: str = "consentier"
    days: _Days
    bundles: Path | None = None


class KeysRule(_Section):
    """Keys of a keyring are followed by new ones, and thrown away later.

    Attributes
    ----------
    path
        The keyring's file.
    rotate_days
        A newer key is made when the newest is older than this.
    keep_days
        A key is thrown away so long after it was followed: what it named can then be matched no more.
    """

    what: Literal["keys"]
    path: Path
    rotate_days: _Days
    keep_days: _Days


Rule = FilesRule | TableRule | ProfilesRule | AuditRule | OutcomesRule | BundlesRule | TrackingRule | KeysRule

_RULES: tuple[type[Rule], ...] = (
    FilesRule,
    TableRule,
    ProfilesRule,
    AuditRule,
    OutcomesRule,
    BundlesRule,
    TrackingRule,
    KeysRule,
)


class RetentionSchedule(_Section):
    """What is kept for how long.

    Attributes
    ----------
    keep
        The rules, carried out in this order.
    """

    keep: tuple[Annotated[Rule, Field(discriminator="what")], ...] = Field(min_length=1)


def load_schedule(path: str | Path) -> RetentionSchedule:
    """Read a schedule (TOML). Paths in it are relative to its own directory.

    Raises
    ------
    ConfigError
        If the file is missing, is no TOML, or has unknown keys or impossible values.
    """
    path = Path(path)
    document = read_toml(path, f"retention schedule {path}", ConfigError)
    try:
        schedule = TypeAdapter(RetentionSchedule).validate_python(document)
    except ValidationError as error:
        problems = "\n".join(_problem(each) for each in error.errors(include_url=False))
        raise ConfigError(f"retention schedule {path}:\n{problems}") from error
    base = path.absolute().parent
    return RetentionSchedule(keep=tuple(_absolute(rule, base) for rule in schedule.keep))


def _absolute(rule: Rule, base: Path) -> Rule:
    moved = {
        name: base / value for name, value in rule if isinstance(value, Path) and not value.is_absolute()
    }
    return rule.model_copy(update=moved)


def _problem(failure: Any) -> str:
    """One line on what is wrong with the file, with the near name of an unknown key."""
    location = [str(part) for part in failure["loc"]]
    where = ".".join(location)
    if failure["type"] == "extra_forbidden":
        kind = location[2] if len(location) > 3 else None
        known = next(([*rule.model_fields] for rule in _RULES if rule.kind() == kind), ["keep"])
        return f"  {where}: unknown key{suggestion(location[-1], known)}"
    return f"  {where}: {failure['msg'].removeprefix('Value error, ')}"
