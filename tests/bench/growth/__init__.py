"""How cost grows: with streams, gateways, replicas, the prompt's length, and the number of replicas that the router chooses from."""
