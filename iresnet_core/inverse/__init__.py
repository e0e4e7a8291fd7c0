"""The solution x of x + g(x) = y, with a certified distance to the exact one."""
