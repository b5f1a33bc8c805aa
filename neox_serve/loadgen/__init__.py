"""A load generator for whatever streams tokens: `neox-serve bench`, and the benches of this repository.

A `Load` says what is asked (a workload) and when (arrivals). It goes to a process of its own, which stamps raw bytes as they come and
decodes them only when the run is over; records come back, and `summarize` makes figures of them:

    with load_generator(GatewaySpec("127.0.0.1:50051"), folder) as generator:
        outcome = generator.run(Load(Synthetic("mine", 100), OpenLoop(rate_rps=4.0)))
    print(summarize(outcome.records).figures())
"""
