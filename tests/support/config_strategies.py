"""Configurations of every kind, for property tests."""

from __future__ import annotations

import datetime as dt

from hypothesis import strategies as st

from consentier.training.config import Config, TierConfig, TrackingConfig, TrainingConfig

_weights = st.floats(0, 100)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Configurations that differ from the defaults in some fields of every type."""
    default = Config()
    tiers = {}
    for name in ("session", "crm", "fused"):
        tier: TierConfig = getattr(default, name)
        changes = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "algorithm": st.sampled_from(
                        ("bm25", "cosine", *(() if name == "session" else ("als",)))
                    ),
                    "repeat_weight": st.sampled_from((0.0, tier.repeat_weight)) | st.floats(0, 100),
                    "neighbours": st.integers(1, 10_000),
                    "regularisation": st.floats(0, 1e300, allow_infinity=False),
                    "recency_half_life": st.none() | st.floats(1e-9, 1e6),
                    "hide": st.sampled_from(((), ("crm",), ("crm", "online"))),
                    "source_weights": st.builds(
                        lambda some, before=tier.source_weights: {**before, **some},
                        st.dictionaries(st.sampled_from(("session", "online", "crm")), _weights),
                    ),
                    "event_weights": st.builds(
                        lambda some, before=tier.event_weights: {**before, **some},
                        st.dictionaries(st.sampled_from(("view", "order", "usage")), _weights),
                    ),
                },
            )
        )
        tiers[name] = TierConfig.model_validate({**tier.model_dump(), **changes})
    training = TrainingConfig(
        cutoff=draw(st.none() | st.datetimes(dt.datetime(1990, 1, 1), timezones=st.just(dt.UTC))),
        threads=draw(st.none() | st.integers(1, 8)),
    )
    tracking = TrackingConfig(
        enabled=draw(st.booleans()), uri=draw(st.text(st.characters(codec="utf-8"), max_size=9))
    )
    return default.model_copy(update={**tiers, "training": training, "tracking": tracking})
