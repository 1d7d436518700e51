"""The recommender core: plain Python and NumPy, no web, no store, no model runtime."""
