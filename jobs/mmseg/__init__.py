"""MMSegmentation as the engine runs it: config, model, loop, state, data, metrics. Nobody else imports it."""
