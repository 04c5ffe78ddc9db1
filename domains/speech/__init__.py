"""Speech: recordings of several people talking at once."""
