"""What the model sees becomes what happens: tracks, zones, lines. Pure: time is the frames' own."""
