"""A reference service: the embedded recommender behind HTTP, with a small shop page to try it."""
