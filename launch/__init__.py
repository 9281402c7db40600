"""What runs on the login node; imports neither torch nor mmengine nor mmseg, so commands answer at once."""
