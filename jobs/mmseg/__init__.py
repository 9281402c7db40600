"""MMSegmentation as the engine runs it: config, model, loop, state, data, metrics. Only jobs import it."""
