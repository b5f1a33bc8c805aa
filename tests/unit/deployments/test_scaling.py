"""A cluster scales by the policy that is simulated, tuned as the settings say."""

from dataclasses import fields

from autoscaling.policies.token_aware import Tuning
from deployments.scaling import tuning_of
from neox_serve.settings.scaling import ScalingSettings


def test_tuning_of_default_settings_is_the_simulated_policys() -> None:
    assert tuning_of(ScalingSettings()) == Tuning()


def test_tuning_takes_every_value_from_the_settings() -> None:
    default = Tuning()
    settings = ScalingSettings(
        headroom=2.2,
        scale_down_hold_startups=4.0,
        scale_down_hold_s=180.0,
        demand_history_s=14_400.0,
        demand_window_s=600.0,
        scale_to_zero_after_s=600.0,
    )
    tuning = tuning_of(settings)
    not_settings = {"miss_share", "spare_fraction", "period_s"}
    unchanged = {field.name for field in fields(Tuning) if getattr(tuning, field.name) == getattr(default, field.name)}
    assert unchanged == not_settings
