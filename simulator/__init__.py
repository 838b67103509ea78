"""The instrument's twin: specimens, the forward model and a controller over them."""
