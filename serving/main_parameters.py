"""The main parameters of a model and of a shop's rules in plain words (DSA 27, where it applies).

Every setting of a bundle's manifest stands in the text: those with a plain meaning as a sentence, the rest by
name. So does every rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from consentier.consent import Side, Source, Tier, sources_of
from consentier.models.bundle import Manifest
from consentier.serving.rules import Explore, Rules

__all__ = ["LEARNT_FROM", "SOURCE_WORDS", "main_parameters", "rule_parameters", "trending_parameter"]

SOURCE_WORDS: Mapping[Source, str] = {
    Source.SESSION: "the running session",
    Source.ONLINE: "the online history",
    Source.CRM: "CRM data (orders, product usage, master data)",
}
"""What each source is, in words."""

LEARNT_FROM: Mapping[Tier, frozenset[Source]] = {
    Tier.SESSION: frozenset({Source.ONLINE}),
    Tier.ONLINE: frozenset({Source.ONLINE}),
    Tier.CRM: frozenset({Source.CRM}),
    Tier.FUSED: frozenset({Source.ONLINE, Source.CRM}),
    Tier.POPULAR: frozenset({Source.ONLINE, Source.CRM}),
}
"""Under whose permission the rows stand that a tier's model is fitted on."""

_METHODS: Mapping[str, str] = {
    "local_ridge": "each item's score is a weighted sum over the items of the history; the weights were "
    "fitted to which items occur together (ridge regression, one item at a time)",
    "als": "items and histories are described by factors; a history's factors are a weighted sum over its "
    "items, found by least squares at each request; the items' factors were fitted to who had which items "
    "(alternating least squares)",
    "bpr": "items and histories are described by factors; a history's factors are a weighted sum over its "
    "items, found by least squares at each request; the items' factors were fitted to rank the items that "
    "somebody had before others (Bayesian personalised ranking)",
    "spectral": "items and histories are described by factors; a history's factors are a weighted sum over "
    "its items, found by least squares at each request, which start from what is usual for whoever has the "
    "same attributes; the items' factors are the strongest patterns in which items occur together "
    "(eigenvectors)",
    "popularity": "items are ordered by the number of persons behind them, separately for the online and the "
    "CRM side; no person is read",
}


def main_parameters(manifest: Manifest) -> list[str]:
    """What decides which items a model puts first, one sentence each.

    Parameters
    ----------
    manifest
        The manifest of a bundle.
    """
    tier = Tier(manifest.tier)
    sentences = [f"Method: {_method(manifest.algorithm)}. Equal scores are ordered by item id."]
    read = sources_of(tier, Side.ONLINE)
    if read:
        sentences.append(
            f"It reads {_listed([SOURCE_WORDS[source] for source in Source if source in read])}."
        )
    scoring = dict(manifest.scoring)
    for name, say in _SENTENCES.items():
        if name in scoring:
            sentences += say(scoring, read)
    sentences += _borrowing(manifest.parameters)
    said = {*_SENTENCES, *_WITH_OTHERS, "algorithm"}
    rest = {
        **{name: value for name, value in manifest.parameters.items() if name not in said},
        **{name: value for name, value in scoring.items() if name not in said},
    }
    sentences += [f"{name}: {_value(rest[name])}." for name in sorted(rest)]
    return sentences


def rule_parameters(rules: Rules) -> list[str]:
    """What a shop's business rules change in every list, one sentence a rule."""
    said = []
    if rules.show is not None:
        said.append(f"Only items with {rules.show} are shown.")
    if rules.deny:
        said.append(f"The shop has taken {len(rules.deny)} items out of all recommendations.")
    said += [
        f"Items with {boost.where} have their scores multiplied by {_value(boost.factor)}."
        for boost in rules.boosts
    ]
    said += [
        f"A list holds at most {most} items with the same {name}."
        for name, most in sorted(rules.caps.items())
    ]
    if rules.rebuy is not None:
        rebuy = rules.rebuy
        days = [f"{value} after {_value(each)} days" for value, each in sorted(rebuy.days.items())]
        rest = "never" if rebuy.otherwise is None else f"after {_value(rebuy.otherwise)} days"
        said.append(
            f"What was bought comes again by its {rebuy.column}: {', '.join([*days, f'all else {rest}'])}."
        )
    if rules.diversity is not None:
        said.append(
            f"Items that agree with those before them in {_listed(list(rules.diversity.columns))} come later "
            f"(weight {_value(rules.diversity.weight)} of 1)."
        )
    if rules.explore is not None:
        said.append(_exploring(rules.explore))
    return said


def _exploring(explore: Explore) -> str:
    new = f"items that fewer than {explore.persons} persons had"
    if explore.column is not None and explore.days is not None:
        new += f" and that were added within {_value(explore.days)} days (by their {explore.column})"
    return f"On the online side {explore.share * 100:.4g} % of the places go to {new}, drawn by chance."


def trending_parameter(share: float) -> str:
    """What trending items change, in words; `share` as in `Trending`."""
    return (
        f"Of what the popular list gives on the online side, up to {share * 100:.4g} % are items that most "
        "permitted visitors asked for lately; no person is read."
    )


def _method(algorithm: str) -> str:
    default = (
        f"each item's score is a weighted sum over the items of the history; the weights are {algorithm} "
        "similarities of items that occur together"
    )
    return _METHODS.get(algorithm, default)


_Sentences = Iterator[str]
_Scoring = Mapping[str, Any]


def _sources(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:
    weights = [f"{source} {_value(scoring['source_weights'].get(source, 0.0))}" for source in sorted(read)]
    yield f"Weight of an event by where it comes from: {', '.join(weights) or 'none is read'}."


def _events(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:  # noqa: ARG001
    weights = [f"{name} {_value(weight)}" for name, weight in sorted(scoring["event_weights"].items())]
    yield f"Weight of an event by its type: {', '.join([*weights, 'any other 1'])}."


def _decay(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:
    if Source.SESSION in read:
        half = scoring["session_decay"] * math.log(2)
        yield f"The last item of the session counts most; one {half:.2g} items before it, half as much."


def _history(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:  # noqa: ARG001
    yield f"Of each source, the latest {scoring['max_history']} events count."


def _recency(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:
    half_life = scoring["recency_half_life"]
    if half_life is not None and read - {Source.SESSION}:
        yield f"An event {half_life:.3g} days older than the newest one counts half as much as that."


def _second_hop(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:  # noqa: ARG001
    if scoring["second_hop_weight"]:
        yield (
            f"The best {scoring['second_hop_items']} items of a first score pass on to what goes with them, "
            f"with {_value(scoring['second_hop_weight'])} times their score."
        )


def _returning(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:
    if "fold_in" in scoring and scoring["repeat_weight"]:
        yield (f"Items of the history gain {_value(scoring['repeat_weight'])} times what they count there.")
    elif Source.SESSION in read and scoring["repeat_weight"]:
        yield (
            "Items of the session gain by how often sessions return to an item seen that long ago: the "
            f"probability times {_value(scoring['repeat_weight'])}."
        )


def _hide(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:  # noqa: ARG001
    hidden = _listed([SOURCE_WORDS[Source(source)] for source in scoring["hide"]])
    yield (
        f"Items that stand in {hidden} are not recommended again."
        if hidden
        else "Items of the history may be recommended again."
    )


def _attributes(scoring: _Scoring, read: frozenset[Source]) -> _Sentences:
    names = [str(column["name"]) for column in scoring.get("attributes", [])]
    if Source.CRM in read and names and scoring["attribute_weight"]:
        yield (
            f"Master data count too ({', '.join(names)}): together as much as "
            f"{_value(scoring['attribute_weight'])} events without any history, and half of that at "
            f"{_value(scoring['attribute_fade'])} items of history."
        )
    else:
        yield "Master data do not count."


def _borrowing(parameters: Mapping[str, Any]) -> _Sentences:
    metadata = parameters.get("item_metadata")
    if metadata is None:
        yield "What items are like does not count."
        return
    yield (
        f"What items are like counts too ({_value(metadata['columns'])}; digest {metadata['digest']}): the "
        f"weights of up to {parameters['metadata_neighbours']} similar items stand in for those of an item "
        f"that fewer than {parameters['metadata_persons']} persons had, the more so the fewer there were."
    )


_SENTENCES: Mapping[str, Callable[[_Scoring, frozenset[Source]], _Sentences]] = {
    "source_weights": _sources,
    "event_weights": _events,
    "session_decay": _decay,
    "max_history": _history,
    "recency_half_life": _recency,
    "second_hop_weight": _second_hop,
    "repeat_weight": _returning,
    "hide": _hide,
    "attribute_weight": _attributes,
}

_WITH_OTHERS = frozenset(
    {
        "attribute_fade", "attributes", "second_hop_items",
        "item_metadata", "metadata_columns", "metadata_neighbours", "metadata_persons",
    }
)  # fmt: skip
"""Settings that the sentence on another one says too."""


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _value(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(each)}" for name, each in sorted(value.items())) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_value(each) for each in value) or "none"
    return str(value)
