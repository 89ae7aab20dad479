"""What a ledger, or an explicit permission, says about the person of one request at one moment."""

from __future__ import annotations

import dataclasses

from consentier.consent.permissions import Permission

__all__ = ["Resolution"]


@dataclasses.dataclass(frozen=True, slots=True)
class Resolution:
    """The resolved permissions of a request. Everything not stated is denied.

    Attributes
    ----------
    online, crm
        Whether the visitor's online data and the customer's CRM data may be used.
    linked
        Whether visitor and customer may be treated as one person.
    objected, minor
        A standing objection (GDPR 21), or a minor without parental consent: either overrides all else.
    contact
        Channels in which the person may be contacted; None where nobody was asked (no ledger).
    granted_purposes, denied_purposes
        Separated purposes (``ads``, ``fusion``, ``model``) that were granted, and those on which there are
        records but no grant in force.
    reasons
        Short codes of why, in a fixed order.
    ledger_position
        The position of the ledger's last entry when it was asked; None without a ledger.
    lifetimes_version
        Which rules said how old grants may grow; None without a ledger.
    online_since, crm_since
        Since when, in microseconds since the Unix epoch, this permission has been held without interruption,
        as far as it is held: what is older may not be read. None where nothing is known of that (no ledger):
        whoever declares a permission answers for what is read under it.
    """

    online: bool = False
    crm: bool = False
    linked: bool = False
    objected: bool = False
    minor: bool = False
    contact: frozenset[str] | None = None
    granted_purposes: frozenset[str] = frozenset()
    denied_purposes: frozenset[str] = frozenset()
    reasons: tuple[str, ...] = ()
    ledger_position: int | None = None
    lifetimes_version: str | None = None
    online_since: int | None = None
    crm_since: int | None = None

    @property
    def permission(self) -> Permission:
        """The two permissions as a flag; NONE under an objection or for a minor without parental consent."""
        if self.objected or self.minor:
            return Permission.NONE
        online = Permission.ONLINE if self.online else Permission.NONE
        return online | (Permission.CRM if self.crm else Permission.NONE)

    @classmethod
    def declared(cls, permission: Permission, *, linked: bool = False) -> Resolution:
        """What the shop itself declares, where there is no ledger to ask."""
        return cls(
            online=Permission.ONLINE in permission,
            crm=Permission.CRM in permission,
            linked=linked and permission.level == 3,
            reasons=("permission declared by the caller",),
        )

    def intersected(self, permission: Permission) -> Resolution:
        """Keep only what an explicit permission grants too: a request never outranks the ledger."""
        online = self.online and Permission.ONLINE in permission
        crm = self.crm and Permission.CRM in permission
        if (online, crm) == (self.online, self.crm):
            return self
        return dataclasses.replace(
            self,
            online=online,
            crm=crm,
            linked=self.linked and online and crm,
            reasons=(*self.reasons, "narrowed by the caller's permission"),
        )
