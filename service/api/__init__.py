"""HTTP and nothing else: bodies in, answers out, errors as problems."""
