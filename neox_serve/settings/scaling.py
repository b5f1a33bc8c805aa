"""The section about autoscaling."""

from typing import Literal

from pydantic import Field

from neox_serve.settings.sections import Section


class ScalingSettings(Section):
    """How the number of replicas is chosen for pools whose `replicas.min` and `replicas.max` differ.

    The step_* and kv_cache_tokens settings describe what one replica can do. Their defaults are those of GPT-NeoX-20B on two A100-80GB;
    `neox-serve simulate --calibration` measures them for another model or GPU.
    """

    policy: Literal["token-aware", "target-ongoing-requests", "target-ttft", "kpa", "saturation", "forecast"] = Field(
        "token-aware",
        description="Policy that computes the number of replicas. `token-aware` forecasts the tokens to be processed; "
        "`target-ongoing-requests` is Ray Serve's own; the others exist for comparison.",
    )
    interval_s: float = Field(1.0, gt=0, description="Time between two scaling decisions, in seconds.")
    gpu_budget: float | None = Field(
        None, gt=0, description="Maximum number of GPUs that all pools together may use. Unset: limited only by each pool's replicas.max."
    )
    target_ttft_s: float = Field(2.0, gt=0, description="Target time to first token (TTFT), in seconds.")
    target_tpot_s: float = Field(0.1, gt=0, description="Target time per output token after the first (TPOT), in seconds.")
    target_attainment_fraction: float = Field(
        0.99, gt=0, lt=1, description="Fraction of requests that should meet both the TTFT and the TPOT target."
    )
    assumed_startup_s: float = Field(
        60.0, gt=0, description="Start-up time of a replica, in seconds, that is assumed until a start-up has been measured."
    )
    headroom: float = Field(1.1, gt=0, description="token-aware: capacity to provide, as a multiple of the expected demand.")
    demand_window_s: float = Field(
        300.0,
        gt=0,
        description="token-aware: window, in seconds, over which the level of demand is averaged. The policy does not scale down before it "
        "has observed demand for twice this time.",
    )
    demand_history_s: float = Field(
        7200.0,
        ge=10,
        description="token-aware: how long, in seconds, past demand is remembered. Capacity is kept for bursts in this period.",
    )
    scale_down_hold_startups: float = Field(
        2.0,
        ge=1,
        description="token-aware: time for which fewer replicas must be sufficient before the policy scales down, as a multiple of the "
        "replica start-up time. scale_down_hold_s is added to it.",
    )
    scale_down_hold_s: float = Field(
        90.0,
        ge=0,
        description="token-aware: constant part, in seconds, of the time for which fewer replicas must be sufficient before the policy "
        "scales down.",
    )
    scale_to_zero_after_s: float = Field(
        300.0, ge=0, description="token-aware: seconds without requests after which a pool with replicas.min 0 scales to zero."
    )
    target_ongoing_requests: float = Field(
        32.0, gt=0, description="target-ongoing-requests: average number of requests in progress that one replica should have."
    )
    look_back_period_s: float = Field(
        30.0, gt=0, description="target-ongoing-requests: window, in seconds, over which requests in progress are averaged."
    )
    upscale_delay_s: float = Field(
        30.0, ge=0, description="target-ongoing-requests: seconds for which more replicas must be needed before the pool is scaled up."
    )
    downscale_delay_s: float = Field(
        600.0, ge=0, description="target-ongoing-requests: seconds for which fewer replicas must suffice before the pool is scaled down."
    )
    step_base_s: float = Field(0.0181, gt=0, description="Time of an engine step, in seconds, for reading the model's weights.")
    step_per_sequence_s: float = Field(6.3e-5, ge=0, description="Seconds that each running sequence adds to an engine step.")
    step_per_resident_token_s: float = Field(3.6e-7, ge=0, description="Seconds that each token in the KV cache adds to an engine step.")
    step_per_prompt_token_s: float = Field(1.06e-4, ge=0, description="Seconds that each prompt token (prefill) adds to an engine step.")
    kv_cache_tokens: int = Field(100_352, ge=1, description="Number of tokens that the KV cache of one replica holds.")
