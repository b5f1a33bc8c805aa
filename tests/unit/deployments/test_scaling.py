"""The policy that a cluster runs by default is the one that is simulated."""

from dataclasses import fields

from autoscaling.policies.token_aware import Tuning
from deployments.scaling import tuning_of
from neox_serve.settings.cluster import ScalingSettings


def test_defaults_are_the_simulated_policys() -> None:
    assert tuning_of(ScalingSettings()) == Tuning()


def test_every_choice_of_the_settings_reaches_the_policy() -> None:
    chosen = {field.name: 2 * getattr(Tuning(), field.name) for field in fields(Tuning) if field.name in ScalingSettings.model_fields}
    assert {"headroom", "hold_startups", "hold_beyond_s", "history_s", "level_s", "idle_s"} <= chosen.keys()
    assert tuning_of(ScalingSettings(**chosen)) == Tuning(**chosen)
