"""Photo-like talking heads: a head in three dimensions, drawn with exact flow, visibility and motion labels."""
