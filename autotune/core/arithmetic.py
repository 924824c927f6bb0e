"""Arithmetic that several folders need: the divisors of a number, and a quantile of the normal distribution."""

# The 97.5 % quantile: half the width of a 95 % interval, in standard errors (NIST e-Handbook, 1.3.6.7.1).
NORMAL_975 = 1.960


def divisors(number: int) -> tuple[int, ...]:
    """All divisors of a whole number >= 1, ascending."""
    return tuple(divisor for divisor in range(1, number + 1) if number % divisor == 0)
