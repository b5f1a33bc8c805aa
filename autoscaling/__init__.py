"""Pool sizing: policies turn signals of a replica pool into a replica count.

`signals`, `attainment`, `scaler`, `policies` and `ray_adapter` use only the standard library, so that Ray Serve's controller can import
them anywhere; only `ray_adapter` may import Ray. `simulator` may also use numpy, `neox_serve.core` and `neox_serve.model`. Start reading at
`signals.py` (what a policy sees), then `policies/decision.py` (what a policy is) and `policies/token_aware.py` (the default policy).
"""
