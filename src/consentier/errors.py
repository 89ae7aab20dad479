"""The exceptions of Consentier.

::

    ConsentierError
    ├── DataError            a shop table breaks the data contract, or a store of profiles cannot be used
    │   ├── ShopInvalid          several tables of a shop do: it lists what is wrong with each
    │   └── StoreTimeout         a store gave no answer in time
    ├── ConfigError          a configuration file or option is wrong
    ├── PolicyError          a routing policy is wrong or grants more than the law of the engine allows
    ├── LedgerError          the consent ledger cannot be read, or a record is malformed
    │   └── LedgerTimeout        the ledger gave no answer in time
    ├── SignalError          a consent signal cannot be read
    ├── AuditError           an audit line, or a key that it needs, cannot be used
    ├── BundleError          a model bundle cannot be used
    │   ├── BundleMissing        there is none at that path
    │   ├── BundleMalformed      manifest or arrays are not what the format says
    │   ├── BundleAltered        a digest does not match: the files were changed after they were written
    │   └── BundleUnsupported    written by a format version that this release does not read
    ├── TrackingError        the MLflow store cannot be used
    │   └── TrackingMissing      it has no such thing
    └── TrainingError        the permitted data do not suffice to train or evaluate
        └── NothingPermitted     there are no rows at all that may be learnt from

Every message says what was wrong, where, and what to do. Wrong *argument types* to a public call are
``TypeError`` or ``ValueError``, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = [
    "AuditError",
    "BundleAltered",
    "BundleError",
    "BundleMalformed",
    "BundleMissing",
    "BundleUnsupported",
    "ConfigError",
    "ConsentierError",
    "DataError",
    "LedgerError",
    "LedgerTimeout",
    "NothingPermitted",
    "PolicyError",
    "ShopInvalid",
    "SignalError",
    "StoreTimeout",
    "TrackingError",
    "TrackingMissing",
    "TrainingError",
    "suggestion",
]


class ConsentierError(Exception):
    """Base of all errors that Consentier raises on purpose."""


class DataError(ConsentierError):
    """A shop table breaks the data contract, or a store of profiles cannot be used."""


class ShopInvalid(DataError):  # noqa: N818 - reads as the state of the shop
    """Several tables of a shop break the data contract.

    Parameters
    ----------
    problems
        What is wrong, one message for each table.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(
            "\n".join(
                [f"{len(problems)} tables break the data contract:", *(f"- {each}" for each in problems)]
            )
        )
        self.problems = tuple(problems)


class StoreTimeout(DataError):  # noqa: N818
    """A store of profiles gave no answer in time."""


class ConfigError(ConsentierError):
    """A configuration file or option is wrong."""


class PolicyError(ConsentierError):
    """A routing policy is malformed, or would let a tier read more than its permission covers."""


class LedgerError(ConsentierError):
    """The consent ledger cannot be read, or a consent record is malformed."""


class LedgerTimeout(LedgerError):  # noqa: N818
    """The consent ledger gave no answer in time."""


class SignalError(ConsentierError):
    """A consent signal cannot be read. What cannot be read is recorded as a denial."""


class AuditError(ConsentierError):
    """An audit line, or a key that it needs, cannot be used."""


class BundleError(ConsentierError):
    """A model bundle cannot be used."""


class BundleMissing(BundleError):  # noqa: N818 - reads as the state of the bundle, as in the tree above
    """There is no bundle at the path."""


class BundleMalformed(BundleError):  # noqa: N818
    """The manifest or an array is not what the bundle format says."""


class BundleAltered(BundleError):  # noqa: N818
    """A digest does not match: a file was changed after the bundle was written."""


class BundleUnsupported(BundleError):  # noqa: N818
    """The bundle was written by a format version that this release does not read."""


class TrackingError(ConsentierError):
    """The MLflow store, or the model registry in it, cannot be used."""


class TrackingMissing(TrackingError):  # noqa: N818 - reads as the state of the store
    """The MLflow store has no such thing."""


class TrainingError(ConsentierError):
    """The permitted data do not suffice to train or evaluate."""


class NothingPermitted(TrainingError):  # noqa: N818
    """A tier has no rows that may be learnt from (any more), or none with enough persons behind them."""


def suggestion(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the near one, or else all that are known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
