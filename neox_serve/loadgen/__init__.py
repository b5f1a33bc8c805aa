"""A load generator for any system that streams tokens, used by `neox-serve bench` and the benchmarks in tests/bench.

A `Load` consists of a workload (the requests) and arrivals (when they are sent). It runs in a process of its own, which time-stamps the raw
bytes as they arrive and decodes them only after the run. It returns records, from which `summarize` computes figures:

    with load_generator(GatewaySpec("127.0.0.1:50051"), folder) as generator:
        outcome = generator.run(Load(Synthetic("mine", 100), OpenLoop(rate_rps=4.0)))
    print(summarize(outcome.records).figures())

Imports the core and the client's protocol, no server code. Start with `generator`.
"""
