"""Policies by the names that settings use, each with its own defaults."""

from collections.abc import Mapping
from types import MappingProxyType

from autoscaling.policies.decision import Policy
from autoscaling.policies.dynamo import forecast
from autoscaling.policies.knative import kpa
from autoscaling.policies.llm_d import saturation
from autoscaling.policies.ray_serve import target_ongoing_requests, target_ttft
from autoscaling.policies.token_aware import token_aware

DEFAULT_POLICY = "token-aware"
POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        DEFAULT_POLICY: token_aware(),
        "target-ongoing-requests": target_ongoing_requests(target_requests=32.0),
        "target-ttft": target_ttft(target_fraction=0.5),
        "kpa": kpa(target_concurrency=32.0),
        "saturation": saturation(),
        "forecast": forecast(headroom=1.2),
    }
)
