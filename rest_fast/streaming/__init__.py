"""Everything that belongs to a live stream: its timeline, its cache rows, its sampler, its decoder, its session."""
