"""`tornado-gateway doctor`: check everything that a gateway depends on, and name the remedy for each problem.

Only this package knows the codes of findings. A code other than "ok" has its remedy in `remedies`. Nothing is changed:
files written for a check are removed again. Used by `cli/main`.
"""
