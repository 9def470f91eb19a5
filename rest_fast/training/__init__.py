"""Training. So far: the first demo weights, by flow matching on drawn faces (:mod:`.first_weights`)."""
