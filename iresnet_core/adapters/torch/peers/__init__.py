"""Models of other packages, and networks without a cap, that are trained beside ours."""
