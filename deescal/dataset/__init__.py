"""From judged clips or published transcripts to a dataset one can train on and publish."""
