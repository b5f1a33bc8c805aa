"""The pure core: types, errors, routing, lifecycles. No I/O and no clock of its own."""
