"""The page of `metricid demo`: search with a photo, compare two, look at confusions."""
