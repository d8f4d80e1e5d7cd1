"""Building a shallow (and, if wanted, narrower) student from a teacher."""
