"""Scaling policies: the default policy (`token_aware`) and the policies of other systems that it is compared with.

Modules here may import only the standard library and `autoscaling.signals`. Start reading at `decision.py`, then `token_aware.py`.
`POLICIES` maps the names used in the settings to policies with default parameters.
"""

from collections.abc import Mapping
from types import MappingProxyType

from autoscaling.policies.decision import Policy
from autoscaling.policies.dynamo import forecast
from autoscaling.policies.knative import kpa
from autoscaling.policies.llm_d import saturation
from autoscaling.policies.ray_serve import target_ongoing_requests, target_ttft
from autoscaling.policies.token_aware import token_aware

DEFAULT_POLICY = "token-aware"
"""Name of the policy that is used unless the settings choose another."""
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
"""Every policy by its name in the settings."""
