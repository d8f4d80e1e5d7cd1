"""Making students smaller still: weights of few bits, and vocabularies of the tokens that a corpus has."""
