"""Objectives side by side: same data, same backbone, same number of images seen, several seeds each."""
