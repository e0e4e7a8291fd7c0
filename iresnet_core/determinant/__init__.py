"""The log-determinant log|det(I + J_g(x))|: its methods, their errors, and the choice between them."""
