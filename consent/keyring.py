"""Keys under which subjects and inputs are named where their names may not stand: audit lines, lineage.

A keyed digest (HMAC-SHA-256) can be matched by who holds the key, and guessed by nobody else. Keys rotate:
new digests are made under the newest; older ones can be matched until their key is thrown away. From then on
nobody can tell any more whom they named.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hmac
import itertools
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consentier.consent.records import microseconds
from consentier.errors import AuditError
from consentier.writing import flush, remove_remnants, whole_file, workplace, write_new

__all__ = ["Keyring"]

_FORMAT = 1
_KEY_BYTES = 32

_JSON = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


class Keyring:
    """The keys of one installation, newest last.

    Immutable but for `rotate` and `prune`, which write the file anew (beside, then renamed) before they take
    effect. A digest costs some microseconds.

    Parameters
    ----------
    keys
        Keys by id, oldest first.
    created_at
        When each was made.
    path
        The file to keep them in; None keeps them in memory only.
    """

    def __init__(
        self, keys: Mapping[str, bytes], created_at: Mapping[str, dt.datetime], path: Path | None = None
    ) -> None:
        if not keys:
            raise AuditError("a keyring needs at least one key")
        self._keys = MappingProxyType(dict(keys))
        self._created_at = dict(created_at)
        self._path = path

    @classmethod
    def ephemeral(cls) -> Keyring:
        """A keyring whose only key is forgotten with the process."""
        key_id, key = _new_key()
        return cls({key_id: key}, {key_id: dt.datetime.now(dt.UTC)})

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True) -> Keyring:
        """Open the keyring in a file, or make one there.

        Raises
        ------
        AuditError
            If the file is missing (and `create` is False), is no keyring, or may be read by others.
        """
        path = Path(path)
        if create:
            remove_remnants(path)  # a key in one would outlive its pruning
        if not path.exists():
            if not create:
                raise AuditError(
                    f"keyring {path}: there is none; name the one under which the data were keyed"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with workplace(path, mode=0o700) as place, contextlib.suppress(FileExistsError):
                _write(place / path.name, cls.ephemeral()._document())
                os.link(place / path.name, path)  # the first of several processes wins
            flush(path.parent)
        return _read(path)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all keys that are still held, oldest first."""
        return tuple(self._keys)

    @property
    def current_id(self) -> str:
        """Id of the key under which new digests are made."""
        return next(reversed(self._keys))

    @property
    def newest_at(self) -> dt.datetime:
        """When the current key was made."""
        return self._created_at[self.current_id]

    def digest(self, domain: str, value: str) -> str:
        """Name a value under the current key, as ``KEYID:hex``.

        Parameters
        ----------
        domain
            What the digest is for. The same value has unrelated digests in two domains.
        value
            What is not to be named itself.
        """
        return self._digest(self.current_id, domain, value)

    def digests(self, domain: str, value: str) -> list[str]:
        """Name a value under every key that is still held, to find what was named before a rotation."""
        return [self._digest(key_id, domain, value) for key_id in self._keys]

    def digest_with(self, key_id: str, domain: str, value: str) -> str | None:
        """Name a value under a certain key; None if that key has been thrown away."""
        return self._digest(key_id, domain, value) if key_id in self._keys else None

    def rotate(self, at: dt.datetime) -> str:
        """Make a new key, under which all new digests are made; return its id."""
        microseconds(at)
        key_id, key = _new_key()
        self._replace({**self._keys, key_id: key}, {**self._created_at, key_id: at})
        return key_id

    def superseded(self, before: dt.datetime) -> list[str]:
        """Ids of the keys that were followed by a newer one before an instant."""
        microseconds(before)
        return [old for old, new in itertools.pairwise(self._keys) if self._created_at[new] < before]

    def prune(self, before: dt.datetime) -> list[str]:
        """Throw away the keys that were followed by a newer one before an instant; return their ids.

        What they named can be matched by nobody any more.
        """
        gone = self.superseded(before)
        if gone:
            self._replace(
                {key_id: key for key_id, key in self._keys.items() if key_id not in gone},
                {key_id: at for key_id, at in self._created_at.items() if key_id not in gone},
            )
        return gone

    def _digest(self, key_id: str, domain: str, value: str) -> str:
        text = _JSON.encode([domain, value]).encode("ascii")
        return f"{key_id}:{hmac.digest(self._keys[key_id], text, 'sha256').hex()}"

    def _replace(self, keys: dict[str, bytes], created_at: dict[str, dt.datetime]) -> None:
        changed = Keyring(keys, created_at, self._path)
        if self._path is not None:
            with whole_file(self._path) as beside:
                _write(beside, changed._document())
        self._keys, self._created_at = changed._keys, changed._created_at

    def _document(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "keys": [
                {"id": key_id, "key": key.hex(), "created_at": self._created_at[key_id].isoformat()}
                for key_id, key in self._keys.items()
            ],
        }


def _new_key() -> tuple[str, bytes]:
    return secrets.token_hex(4), secrets.token_bytes(_KEY_BYTES)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a new file, for its owner only."""
    write_new(path, json.dumps(document, indent=2).encode("utf-8"), mode=0o600)


def _read(path: Path) -> Keyring:
    try:
        if path.stat().st_mode & 0o077:
            raise AuditError(f"keyring {path}: others may read it; chmod 600 it, and rotate its keys")
        document = json.loads(path.read_text("utf-8"))
        if document["format"] != _FORMAT:
            raise AuditError(f"keyring {path}: format {document['format']!r} is not read by this release")
        keys = {entry["id"]: bytes.fromhex(entry["key"]) for entry in document["keys"]}
        created_at = {
            entry["id"]: dt.datetime.fromisoformat(entry["created_at"]) for entry in document["keys"]
        }
        if not all(len(key) == _KEY_BYTES for key in keys.values()):
            raise ValueError("a key has the wrong length")
        for moment in created_at.values():
            microseconds(moment)
    except OSError as error:
        raise AuditError(f"keyring {path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AuditError(f"keyring {path}: is no keyring ({type(error).__name__})") from error
    return Keyring(keys, created_at, path)
