"""MMSegmentation, as run by the engine: config, model, loop, state, data, metrics. Only jobs import it."""
